"""The figures of one evaluation, with everything that one must know to trust or repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dualtower.config import to_json
from dualtower.evaluation.bootstrap import Interval
from dualtower.files import write_text_atomically
from dualtower.markdown import markdown_table

__all__ = ["Report", "Section", "format_difference", "format_interval", "format_number"]

TITLES = {
    "text_to_image": "text → image",
    "image_to_text": "image → text",
    "image_to_image": "image → image",
    "text_to_text": "text → text",
}
LABELS = {"mrr": "MRR", "mrr@10": "MRR@10", "map": "mAP", "ndcg@10": "nDCG@10", "median_rank": "median rank"}


@dataclass(frozen=True, eq=False)
class Report:
    """Metrics of each direction and the protocol behind them.

    Attributes:
        metrics: Direction (a key of `TITLES`) -> metric -> figure.
        chance: Direction -> metric -> what a random order would reach on average.
        protocol: What was measured on what, and how. ``protocol["directions"]`` holds the sizes, the chance levels and
            the bounds of the optimistic and the pessimistic rule for ties.
    """

    metrics: Mapping[str, Mapping[str, Interval]]
    chance: Mapping[str, Mapping[str, float]]
    protocol: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{direction: {metric: {"value", "low", "high"}}, "protocol": {...}}``."""
        figures: dict[str, Any] = {
            direction: {
                name: {"value": figure.value, "low": figure.low, "high": figure.high}
                for name, figure in metrics.items()
            }
            for direction, metrics in self.metrics.items()
        }
        return {**figures, "protocol": dict(self.protocol)}

    def table(self) -> str:
        """Markdown that also reads well in a terminal: metrics down, directions and their chance levels across."""
        names = list(next(iter(self.metrics.values())))
        header = ["metric"]
        for direction in self.metrics:
            header += [TITLES[direction], "chance"]
        rows = []
        for name in names:
            row = [LABELS.get(name, name)]
            for direction, metrics in self.metrics.items():
                row += [format_interval(name, metrics[name]), format_number(name, self.chance[direction][name])]
            rows.append(row)
        several = self._several()
        return markdown_table(header, rows) + (f"\n\n{several}" if several else "")

    def _several(self) -> str:
        """A sentence where rows have several captions or images."""
        rows, captions, images = (self.protocol.get(key) for key in ("rows", "captions", "images"))
        if captions is not None and images is None:
            return f"Every caption is a query: {rows:,} rows have {captions:,} captions." if captions > rows else ""
        if captions is not None and max(captions, images or 0) > rows:
            sentence = "Every caption is a query and every image is searched"
            return f"{sentence}: {rows:,} rows have {captions:,} captions and {images:,} images."
        if images is not None and images > rows:
            return f"Every image is searched: {rows:,} rows have {images:,} images."
        return ""

    def save(self, folder: str | Path) -> Path:
        """Write ``metrics.json`` into `folder`, atomically; returns its path."""
        path = Path(folder) / "metrics.json"
        write_text_atomically(path, to_json(self.to_dict(), indent=2) + "\n")
        return path


@dataclass(frozen=True)
class Section:
    """What a head of the model achieves, for the report of a run.

    Attributes:
        key: Its place in ``metrics.json``.
        title: Its heading.
        markdown: Its text.
        figures: Plain values.
        images: Name of a PNG file in the report's folder ``report/``, which the text refers to -> what is drawn in it.
        failure: Why the run that is reported here has failed; empty where it has not.
    """

    key: str
    title: str
    markdown: str
    figures: Mapping[str, Any]
    images: Mapping[str, Image.Image] = field(default_factory=dict)
    failure: str = ""


def format_interval(name: str, figure: Interval) -> str:
    """``0.352 [0.331, 0.374]``."""
    value = format_number(name, figure.value)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{format_number(name, figure.low)}, {format_number(name, figure.high)}]"


def format_difference(figure: Interval) -> str:
    """``+0.021 [+0.010, +0.032]``."""
    if figure.low is None or figure.high is None:
        return f"{figure.value:+.3f}"
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def format_number(name: str, value: float) -> str:
    """A figure as the tables show it: three decimals, a rank with one."""
    if name == "median_rank":
        return f"{value:,.1f}".removesuffix(".0")
    return f"{value:.3f}" if value == 0 or value >= 0.0005 else f"{value:.1g}"
