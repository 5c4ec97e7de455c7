"""What each query achieved, saved beside the report, and two such measurements compared query by query.

The file ``queries.parquet`` has a row for each query of each direction:

- ``direction``, ``query`` (row id, or id of the query), ``text`` (null for an image), ``product`` (code of the
  product, whose queries are drawn together by the intervals);
- a column per metric; ``median_rank`` holds the rank of the query's first relevant item.

Its schema carries the protocol, and for each direction the size and a hash of the gallery and of what is relevant, so
that two files can be compared without the models that made them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.errors import ConfigError, DataError
from dualtower.evaluation.bootstrap import Difference, paired_test
from dualtower.evaluation.directions import Direction
from dualtower.evaluation.evaluator import Evaluation
from dualtower.evaluation.reports.report import LABELS, TITLES, format_difference, format_number
from dualtower.files import write_bytes_atomically
from dualtower.markdown import markdown_table

__all__ = [
    "MeasuredQueries",
    "QueryMetrics",
    "compare",
    "compare_queries",
    "comparison_metrics",
    "comparison_table",
    "load_queries",
    "measured_queries",
    "save_queries",
]

FILE = "queries.parquet"
_META = b"dualtower"


@dataclass(frozen=True, eq=False)
class QueryMetrics:
    """What each query with a relevant item achieved in one direction.

    Attributes:
        keys: Row id or query id, length N.
        texts: The query texts, or None for images.
        product_ids: Product code of each query, int64 ``[N]``.
        metrics: Metric -> float64 ``[N]``.
        gallery: Number of items that were searched.
        gallery_digest: Hash of their keys.
        relevance_digest: Hash of which of them are relevant to which query, and how much.
    """

    keys: list[str]
    texts: list[str] | None
    product_ids: np.ndarray
    metrics: Mapping[str, np.ndarray]
    gallery: int
    gallery_digest: str
    relevance_digest: str


@dataclass(frozen=True, eq=False)
class MeasuredQueries:
    """The queries of one measurement.

    Attributes:
        directions: Direction -> what its queries achieved.
        protocol: Protocol of the report.
    """

    directions: Mapping[str, QueryMetrics]
    protocol: Mapping[str, Any]


def measured_queries(result: Evaluation) -> MeasuredQueries:
    """Take out of an evaluation what `save_queries` keeps."""
    return MeasuredQueries(
        {name: _query_metrics(direction) for name, direction in result.directions.items()}, result.report.protocol
    )


def save_queries(folder: str | Path, result: Evaluation) -> Path:
    """Write ``queries.parquet`` into `folder`, atomically; returns its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    measured = measured_queries(result)
    parts, about = [], {}
    for name, of in measured.directions.items():
        columns: dict[str, Any] = {
            "direction": pa.array([name] * len(of.keys)).dictionary_encode(),
            "query": of.keys,
            "text": pa.array([None] * len(of.keys) if of.texts is None else of.texts, pa.string()),
            "product": of.product_ids,
        }
        parts.append(pa.table(columns | dict(of.metrics)))
        about[name] = {
            "gallery": of.gallery,
            "gallery_digest": of.gallery_digest,
            "relevance_digest": of.relevance_digest,
        }
    meta = {"protocol": dict(measured.protocol), "directions": about}
    table = pa.concat_tables(parts).unify_dictionaries()
    table = table.replace_schema_metadata({_META: json.dumps(meta, ensure_ascii=False).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    path = Path(folder) / FILE
    write_bytes_atomically(path, buffer.getvalue())
    return path


def load_queries(path: str | Path) -> MeasuredQueries:
    """Read what `save_queries` wrote.

    Args:
        path: The file, the folder of the run that holds it, or the run's ``model`` folder.

    Raises:
        ConfigError: There is no such file.
        DataError: It cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = _find(Path(path))
    try:
        table = pq.read_table(file)
        meta = json.loads(table.schema.metadata[_META])
        ends = np.cumsum([0] + [len(table.filter(pa.compute.equal(table["direction"], n))) for n in meta["directions"]])
        parts = {n: table.slice(a, b - a) for n, a, b in zip(meta["directions"], ends[:-1], ends[1:], strict=True)}
        return MeasuredQueries({n: _read(part, meta["directions"][n]) for n, part in parts.items()}, meta["protocol"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"cannot read {file}: {str(error) or type(error).__name__:.200}; measure the run again"
        ) from error


def compare(
    first: Evaluation, second: Evaluation, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Difference]]:
    """Paired test of two models that were measured on the same queries and gallery; see `compare_queries`."""
    return compare_queries(measured_queries(first), measured_queries(second), resamples=resamples, seed=seed)


def compare_queries(
    first: MeasuredQueries, second: MeasuredQueries, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Difference]]:
    """Paired test of two measurements of the same queries and gallery.

    Args:
        first: Values of one model.
        second: Values of another.
        resamples: Resamples of the bootstrap by product and of the randomization test.
        seed: Seed of both.

    Returns:
        Direction -> metric -> mean of second - first, for the metrics that both have. ``median_rank`` becomes the mean
        difference of the ranks.

    Raises:
        ConfigError: Queries, galleries or relevance differ; the message says which.
    """
    for name in {**first.directions, **second.directions}:
        _refuse_other_queries(name, first, second)
    return {
        name: {
            metric: paired_test(
                a.metrics[metric], second.directions[name].metrics[metric],
                groups=a.product_ids, resamples=resamples, seed=seed,
            )
            for metric in a.metrics
            if metric in second.directions[name].metrics
        }
        for name, a in first.directions.items()
    }  # fmt: skip


def comparison_metrics(
    first: MeasuredQueries, second: MeasuredQueries, differences: Mapping[str, Mapping[str, Difference]]
) -> dict[str, Any]:
    """Plain values: ``{direction: {metric: {"first", "second", "value", "low", "high", "p"}}, "protocol": {...}}``."""

    def mean(of: MeasuredQueries, name: str, metric: str) -> float:
        return float(np.mean(of.directions[name].metrics[metric]))

    figures: dict[str, Any] = {
        name: {
            metric: {
                "first": mean(first, name, metric),
                "second": mean(second, name, metric),
                "value": difference.value,
                "low": difference.low,
                "high": difference.high,
                "p": difference.p_value,
            }
            for metric, difference in found.items()
        }
        for name, found in differences.items()
    }
    return figures | {"protocol": {"first": first.protocol, "second": second.protocol}}


def comparison_table(figures: Mapping[str, Any], queries: Mapping[str, int]) -> str:
    """Markdown of `comparison_metrics`: means of both, their difference with its interval, and the p-value.

    Args:
        figures: See `comparison_metrics`.
        queries: Direction -> number of queries.
    """
    parts = []
    for name, count in queries.items():
        rows = []
        for metric, of in figures[name].items():
            means = [format_number(metric, of[which]) for which in ("first", "second")]
            label = "mean rank" if metric == "median_rank" else LABELS.get(metric, metric)
            difference = format_difference(Difference(of["value"], of["low"], of["high"], of["p"]))
            rows.append([label, *means, difference, f"{of['p']:.2g}"])
        header = ["metric", "first", "second", "difference", "p"]
        parts.append(f"{TITLES[name]}, {count:,} queries\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def _query_metrics(direction: Direction) -> QueryMetrics:
    queries, ranks = direction.queries, direction.ranks
    judged = ranks.judged
    relevance = hashlib.blake2b(digest_size=8)
    for array in (ranks.starts, ranks.items, ranks.grades):
        relevance.update(np.ascontiguousarray(array).tobytes())
    return QueryMetrics(
        keys=[queries.keys[i] for i in judged],
        texts=None if queries.texts is None else [queries.texts[i] for i in judged],
        product_ids=direction.groups,
        metrics=direction.per_query,
        gallery=len(direction.gallery.keys),
        gallery_digest=_digest(direction.gallery.keys),
        relevance_digest=relevance.hexdigest(),
    )


def _digest(keys: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()


def _find(path: Path) -> Path:
    places = [path] if path.suffix == ".parquet" else [path / FILE, path.parent / FILE][: 1 + (path.name == "model")]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"{places[0]} is missing: {path} holds no measured queries. Name the folder of a run, or measure its model "
        f"first: dualtower evaluate MODEL --data.card CARD --report {path}"
    )


def _read(table: Any, about: Mapping[str, Any]) -> QueryMetrics:
    columns = {name: table[name] for name in table.column_names}
    keys, texts, product_ids = (columns.pop(name) for name in ("query", "text", "product"))
    del columns["direction"]
    return QueryMetrics(
        keys=keys.to_pylist(),
        texts=None if texts.null_count else texts.to_pylist(),
        product_ids=product_ids.to_numpy(),
        metrics={name: column.to_numpy() for name, column in columns.items()},
        **about,
    )


def _refuse_other_queries(name: str, first: MeasuredQueries, second: MeasuredQueries) -> None:
    a, b = first.directions.get(name), second.directions.get(name)
    again = "measure both with the same card, split and relevance file"
    if a is None or b is None:
        raise ConfigError(f"{name}: only one of the two was measured in this direction; {again}")
    if (a.keys, a.texts) != (b.keys, b.texts):
        labels = [of.texts or of.keys for of in (a, b)]
        odd = next(((x, y) for x, y in zip(*labels, strict=False) if x != y), None)
        where = f"; the first that do: {odd[0]!r:.60} and {odd[1]!r:.60}" if odd else ""
        raise ConfigError(f"{name}: the queries differ ({len(a.keys):,} and {len(b.keys):,}){where}; {again}")
    if a.gallery_digest != b.gallery_digest:
        raise ConfigError(f"{name}: the galleries differ ({a.gallery:,} and {b.gallery:,} items); {again}")
    if a.relevance_digest != b.relevance_digest:
        raise ConfigError(f"{name}: other items are relevant to the same queries; {again}")
    prints = [of.protocol["data_fingerprint"] for of in (first, second)]
    if prints[0] != prints[1]:
        raise ConfigError(f"{name}: the rows or images differ (data {prints[0]} and {prints[1]}); {again}")
