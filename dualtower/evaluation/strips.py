"""Pictures for the report: a query beside its best hits, and training curves. No text of the catalogue is drawn
into a picture, since the fonts at hand may lack its script; texts stand in the Markdown beside."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dualtower.data.images import open_image
from dualtower.errors import BrokenImage

__all__ = ["draw_curves", "draw_strip"]

_CELL, _FRAME, _GAP = 112, 5, 6
_WHITE, _GREEN, _GREY = (255, 255, 255), (24, 150, 60), (214, 214, 214)


def draw_strip(hits: Sequence[tuple[Any, bool]], *, query: Any | None = None) -> Image.Image:
    """Lay a query and its hits in a row; relevant hits have a green frame.

    Args:
        hits: (encoded picture or path, whether it is relevant), best first.
        query: Encoded picture or path of the query, drawn at the left without a frame; None for a text query.
    """
    cells = ([] if query is None else [(query, _WHITE)]) + [(h, _GREEN if good else _GREY) for h, good in hits]
    indent = 0 if query is None else 4 * _GAP
    strip = Image.new("RGB", (max(1, len(cells) * (_CELL + _GAP) + indent - _GAP), _CELL), _WHITE)
    pen = ImageDraw.Draw(strip)
    for place, (picture, colour) in enumerate(cells):
        left = place * (_CELL + _GAP) + (indent if place else 0)
        pen.rectangle([left, 0, left + _CELL - 1, _CELL - 1], fill=colour)
        inner = _CELL - 2 * _FRAME
        strip.paste(_thumbnail(picture, inner), (left + _FRAME, _FRAME))
    return strip


def _thumbnail(picture: Any, size: int) -> Image.Image:
    """The picture on a white square; a square of grey where it cannot be read."""
    square = Image.new("RGB", (size, size), _WHITE)
    try:
        image = open_image(picture)
    except BrokenImage:
        return Image.new("RGB", (size, size), _GREY)
    scale = size / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def draw_curves(history: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """Training curves over the optimiser steps: a panel per quantity, all validation figures in one.

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
    return _draw_panels(panels) if panels else None


_PANELS = {"loss": "loss", "lr": "learning rate", "scale": "logit scale", "samples_per_s": "samples per second"}


def _draw_panels(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture that is either old or new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            image.save(stream, format="PNG")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
