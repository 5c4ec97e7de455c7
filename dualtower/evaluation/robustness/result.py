"""What is left of recall under each condition, beside what it is with clean images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dualtower.evaluation.bootstrap import Interval
from dualtower.evaluation.reports.report import format_difference, format_interval, format_number
from dualtower.evaluation.robustness.searches import TITLES
from dualtower.markdown import markdown_table

__all__ = ["CLEAN", "MEAN", "PGD", "Condition", "Example", "Measured", "Robustness"]

PGD = "pgd"


class Condition(NamedTuple):
    """What was done to the query images.

    Attributes:
        name: A corruption, ``pgd``, ``clean``, or ``mean`` (of each query over all corruptions and strengths).
        strength: Of a corruption 1 to 5; of the attack epsilon in 255ths; else 0.
    """

    name: str
    strength: float

    @property
    def label(self) -> str:
        """The strength as tables and figures show it."""
        if self.name == PGD:
            return f"{self.strength:g}/255"
        return f"{self.strength:g}" if self.strength else ""


CLEAN = Condition("clean", 0)
MEAN = Condition("mean", 0)
_NAMES = {MEAN.name: "mean of the corruptions", PGD: "PGD attack"}


@dataclass(frozen=True)
class Measured:
    """Figures of one condition.

    Attributes:
        metrics: Metric -> figure.
        change: Metric -> mean over the queries of this minus clean, with its paired interval; empty for clean images.
    """

    metrics: Mapping[str, Interval]
    change: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{metric: {value, low, high}, "change": {metric: ...}}``."""
        change = {name: _plain(figure) for name, figure in self.change.items()}
        return {name: _plain(figure) for name, figure in self.metrics.items()} | ({"change": change} if change else {})


@dataclass(eq=False)
class Example:
    """One query image as it was changed.

    Attributes:
        images: uint8 ``[3, H, W]`` under each condition; attacked ones are rounded.
        found: Whether something relevant was among the first `Robustness.depth` hits.
    """

    images: dict[Condition, np.ndarray] = field(default_factory=dict)
    found: dict[Condition, bool] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Robustness:
    """Figures of each search under each condition, and the protocol behind them.

    Attributes:
        measured: ``image_to_text``, ``image_to_image`` or ``own_image`` -> condition -> figures.
        chance: The same searches -> metric -> what a random order of the gallery would reach.
        protocol: What was measured on what, and how.
        examples: Some query images of the first search.
    """

    measured: Mapping[str, Mapping[Condition, Measured]]
    chance: Mapping[str, Mapping[str, float]]
    protocol: Mapping[str, Any]
    examples: Sequence[Example] = ()

    @property
    def depth(self) -> int:
        """The largest cut-off: what plots and examples look at."""
        return max(self.protocol["ks"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{search: [{"condition", "strength", metric: {value, low, high}, "change"}], ...}``, and
        ``chance`` and ``protocol``."""
        figures = {
            name: [{"condition": c.name, "strength": c.strength, **of.to_dict()} for c, of in conditions.items()]
            for name, conditions in self.measured.items()
        }
        return {**figures, "chance": {k: dict(v) for k, v in self.chance.items()}, "protocol": dict(self.protocol)}

    def table(self) -> str:
        """Markdown that also reads well in a terminal: for each search, conditions down, recall and its change
        across; and what one must know to read them."""
        parts = []
        for name in self.measured:
            parts += [f"{TITLES[name]}, {self.protocol['searches'][name]['queries']:,} queries", self.table_of(name)]
        return "\n\n".join([*parts, self.reading()])

    def table_of(self, search: str) -> str:
        """The table of one search."""
        names = [f"recall@{k}" for k in self.protocol["ks"]]
        header = ["query image", "strength"]
        for name in names:
            header += [name, "change"]
        rows = []
        for condition, of in self.measured[search].items():
            row = [_NAMES.get(condition.name, condition.name), condition.label]
            for name in names:
                row.append(format_interval(name, of.metrics[name]))
                row.append(format_difference(of.change[name]) if name in of.change else "")
            rows.append(row)
        levels = [cell for name in names for cell in (format_number(name, self.chance[search][name]), "")]
        return markdown_table(header, [*rows, ["random order", "", *levels]])

    def reading(self) -> str:
        """Sentences that say what the figures are."""
        of = self.protocol
        galleries = {TITLES[name]: sizes["gallery"] for name, sizes in of["searches"].items()}
        drawn = f"all {of['rows']:,} rows"
        if of["rows_drawn"] < of["rows"]:
            drawn = f"{of['rows_drawn']:,} of {of['rows']:,} rows, drawn with seed {of['seed']},"
        sentences = [
            f"The images of {drawn} are the queries; "
            "what they search is clean and whole: "
            + ", ".join(f"{size:,} ({title})" for title, size in galleries.items())
            + "."
        ]
        if "image_to_image" in of["searches"]:
            sentences.append("image → image leaves out the query's own clean image.")
        sentences += [f"Not measured: {reason}." for reason in of["left_out"]]
        sentences.append(
            "change: changed minus clean, paired. In brackets: 95 % interval, bootstrap by product. "
            f"Corruptions change the {of['image_size']} pixels that the model sees."
        )
        if of["attack"]:
            sentences.append("The PGD attack knows the model and what is searched.")
        return " ".join(sentences)


def _plain(figure: Interval) -> dict[str, float | None]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}
