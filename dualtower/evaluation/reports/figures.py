"""Images for the report: a query beside its best hits, and training curves. No text of the catalog is drawn
into an image, since the fonts at hand may lack its script; texts stand in the Markdown beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dualtower.data.transforms.images import open_image
from dualtower.errors import BrokenImage
from dualtower.files import atomic_write

__all__ = ["Framed", "draw_curves", "draw_heat", "draw_histogram", "draw_panels", "draw_strip", "save_png"]

_CELL, _FRAME, _GAP, _INDENT, _LINE = 112, 5, 6, 24, 20
_WHITE, _GREEN, _GRAY, _DARK = (255, 255, 255), (24, 150, 60), (214, 214, 214), (40, 40, 40)


class Framed(NamedTuple):
    """An encoded image or path, whether it is relevant (its frame is green then), and a line under it."""

    image: Any
    relevant: bool
    label: str


def draw_strip(parts: Sequence[Sequence[Framed]], *, query: Any | None = None) -> Image.Image:
    """Lay a query and its hits in a row.

    Args:
        parts: Groups of images, with a gap between the groups.
        query: Encoded image or path of the query, drawn at the left without a frame; None for a text query.
    """
    groups = [[Framed(query, False, "")]] if query is not None else []
    groups += [list(part) for part in parts if part]
    count = max(1, sum(map(len, groups)))
    width = count * (_CELL + _GAP) - _GAP + _INDENT * max(0, len(groups) - 1)
    labeled = any(framed.label for group in groups for framed in group)
    strip = Image.new("RGB", (width, _CELL + (_LINE if labeled else 0)), _WHITE)
    pen, left = ImageDraw.Draw(strip), 0
    for number, group in enumerate(groups):
        for image, relevant, label in group:
            frame = _WHITE if query is not None and number == 0 else _GREEN if relevant else _GRAY
            pen.rectangle([left, 0, left + _CELL - 1, _CELL - 1], fill=frame)
            strip.paste(_thumbnail(image, _CELL - 2 * _FRAME), (left + _FRAME, _FRAME))
            if label:
                pen.text((left + _CELL // 2, _CELL + _LINE // 2), label, fill=_DARK, anchor="mm", font=_font())
            left += _CELL + _GAP
        left += _INDENT
    return strip


@lru_cache
def _font() -> Any:
    return ImageFont.load_default(13)


def _thumbnail(encoded: Any, size: int) -> Image.Image:
    """The image on a white square; a square of gray where it cannot be read."""
    square = Image.new("RGB", (size, size), _WHITE)
    try:
        image = open_image(encoded)
    except BrokenImage:
        return Image.new("RGB", (size, size), _GRAY)
    scale = size / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def draw_curves(history: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """Training curves over the optimizer steps: a panel per quantity, all validation figures in one.

    Args:
        history: Lines ``{"step", "loss", "lr", "scale", "samples_per_s"}``
            or ``{"step", "validation"}``, the latter with named figures.

    Returns:
        The figure, or None if there is nothing to draw.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in history:
        for key, title in _PANELS.items():
            if line.get(key) is not None:
                panels.setdefault(title, {}).setdefault(key, []).append((line["step"], line[key]))
        for key, value in line.get("validation", {}).items():
            panels.setdefault("validation", {}).setdefault(key, []).append((line["step"], value))
    return draw_panels(panels) if panels else None


_PANELS = {"loss": "loss", "lr": "learning rate", "scale": "logit scale", "samples_per_s": "samples per second"}


def draw_histogram(samples: Mapping[str, np.ndarray]) -> Image.Image:
    """Shares of samples by value, all on one axis.

    Args:
        samples: Name -> numbers ``[N]``, at least one.
    """
    figure, axes = _figure(6, 2.8, 1, 1)
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=60)
    for (name, values), color in zip(samples.items(), ("#18963c", "#888888", "#3060a0"), strict=False):
        weights = np.full(len(values), 1 / len(values))
        axes[0].hist(values, edges, weights=weights, histtype="stepfilled", alpha=0.6, label=name, color=color)
    axes[0].set_xlabel("score", fontsize=8)
    axes[0].set_ylabel("share of the pairs", fontsize=8)
    axes[0].tick_params(labelsize=8)
    axes[0].legend(fontsize=8, loc="upper left")  # "best" is slow, and warns on a busy machine
    return _drawn(figure)


def draw_heat(image: Image.Image, heat: np.ndarray, limits: tuple[float, float]) -> Image.Image:
    """Lay a heat map over the image in gray: clear at the lower limit, red at the upper one.

    Args:
        image: RGB, ``W`` x ``H``.
        heat: float ``[H, W]``.
        limits: What counts as no heat and as full heat.
    """
    low, high = limits
    strength = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)[..., None]
    gray = np.asarray(image.convert("L"), np.float32)[..., None] * 0.6 + 0.4 * 255  # pale, so that red stands out
    red = np.array([205, 20, 20], np.float32)
    return Image.fromarray((gray * (1 - strength) + red * strength).round().astype(np.uint8))


def draw_panels(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    x_label: str = "step",
    columns: int = 3,
    legend: str = "lower right",
    from_zero: bool = False,
) -> Image.Image:
    """Curves in panels.

    Args:
        panels: Title -> name of a curve -> its points.
        x_label: What stands under every panel.
        columns: Most panels side by side.
        legend: Where the names stand in a panel of several curves.
        from_zero: Let every vertical axis begin at 0, as shares should.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, places = _figure(4 * columns, 2.8 * rows, rows, columns)
    for axes, (title, curves) in zip(places, panels.items(), strict=False):
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x_label, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=7, loc=legend)
        if from_zero:
            axes.set_ylim(bottom=0)
    for axes in places[len(panels) :]:
        axes.remove()
    return _drawn(figure)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, list[Any]]:
    """An empty figure and its panels, line by line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]


def _drawn(figure: Any) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image that is either old or new, never half."""
    with atomic_write(path) as partial:
        image.save(partial, format="PNG", compress_level=3)  # a sixth larger than at 6, in two thirds of the time
