"""The same figures for each value of an attribute: where is the model good, and where not?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualtower.errors import ConfigError
from dualtower.evaluation.bootstrap import Interval, intervals
from dualtower.evaluation.reports.report import format_interval
from dualtower.markdown import markdown_table

__all__ = ["BreakdownRow", "breakdown", "breakdown_table"]

SHOWN = ("recall@1", "recall@10", "mrr", "median_rank")
"""Metrics of the tables, where they were measured."""


@dataclass(frozen=True)
class BreakdownRow:
    """Figures of the queries that share one attribute value."""

    value: str
    queries: int
    metrics: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"value", "queries", metric: {"value", "low", "high"}}``."""
        figures = {name: {"value": f.value, "low": f.low, "high": f.high} for name, f in self.metrics.items()}
        return {"value": self.value, "queries": self.queries, **figures}


def breakdown(
    values: Mapping[str, np.ndarray],
    labels: Sequence[Any],
    *,
    groups: np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    most: int = 20,
) -> list[BreakdownRow]:
    """Summarize queries by their attribute value, the most frequent values first.

    The gallery stays whole, so figures of different values can be compared with each other and with the total.

    Args:
        values: Metric name -> ``[N]`` over queries (`per_query`).
        labels: Attribute value of each query; None is shown as ``(none)``.
        groups: Product code of each query, ``[N]``.
        bootstrap: Resamples behind each interval; 0 for none.
        seed: Seed of the resamples.
        most: Values shown; the queries of all others are summed up as ``(other)``.
    """
    queries = {len(v) for v in values.values()} | {len(labels)}
    if len(queries) > 1:
        raise ConfigError(f"{len(labels)} attribute values do not fit the queries ({sorted(queries)})")
    named = np.array(["(none)" if label is None else str(label) for label in labels], dtype=object)
    frequent = [value for value, _ in sorted(Counter(named).items(), key=lambda item: (-item[1], item[0]))]
    shown = frequent if len(frequent) <= most else frequent[: most - 1]
    parts = [(value, named == value) for value in shown]
    if len(shown) < len(frequent):
        parts.append(("(other)", ~np.isin(named, shown)))
    return [
        BreakdownRow(
            value,
            int(chosen.sum()),
            intervals(
                {name: v[chosen] for name, v in values.items()},
                groups=None if groups is None else groups[chosen],
                bootstrap=bootstrap,
                seed=seed,
            ),
        )
        for value, chosen in parts
    ]


def breakdown_table(attribute: str, rows: Sequence[BreakdownRow], *, escape: Callable[[str], str] = str) -> str:
    """Markdown of `breakdown`: values of the attribute down, metrics across.

    Args:
        attribute: Its name.
        rows: At least one.
        escape: Makes a value fit for a table cell.
    """
    shown = [metric for metric in SHOWN if metric in rows[0].metrics]
    cells = [
        [escape(row.value), f"{row.queries:,}", *(format_interval(metric, row.metrics[metric]) for metric in shown)]
        for row in rows
    ]
    return markdown_table([attribute, "queries", *shown], cells)
