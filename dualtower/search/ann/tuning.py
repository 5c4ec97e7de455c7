"""Choose an index and its effort by measuring: recall against exact search, latency, memory, on real queries.

The vectors of a catalog are no queries: texts and images lie in different parts of the space. But a catalog holds
both, so titles are sent against images and images against images, as users do; a query log is better still.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dualtower.search.ann.index import Index, RowSelection, build_index
from dualtower.search.local.searcher import candidates, exact_scores
from dualtower.search.local.view import View
from dualtower.topk import largest

__all__ = ["Measured", "calibrate", "measure", "sample_queries", "tune", "usual_method"]

K = 10
SHARES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Shares of the rows that filters leave, for which efforts are measured, beside all rows and the fewest."""
_AT_ONCE = 65536


def usual_method(size: int) -> str:
    """What serves a catalog of a size well: all vectors in memory while that is quick, then an inverted file."""
    return "flat" if size < 10_000 else "ivf-sq8"


@dataclass(frozen=True)
class Measured:
    """One index, at one effort, on queries of one kind.

    Attributes:
        method: Method of the index.
        queries: Which queries.
        selectivity: Selectivity of the rows that a filter left.
        search_budget: See `dualtower.search.ann.index`.
        recall: recall@10 against exact search.
        p50: Median milliseconds of one query, without its embedding.
        p99: The 99th percentile.
        megabytes: Megabytes of the index in memory.
    """

    method: str
    queries: str
    selectivity: float
    search_budget: int
    recall: float
    p50: float
    p99: float
    megabytes: float


def sample_queries(view: View, vector_name: str, *, number: int = 500, seed: int = 0) -> dict[str, np.ndarray]:
    """Vectors of all kinds of some rows, to be sent against the vectors of one kind.

    Args:
        view: View of the catalog.
        vector_name: What they will be sent against, which sets their order: other kinds first.
        number: Number of each kind.
        seed: Seed of the choice.

    Returns:
        Kind -> float32 ``[<= number, D]``.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for other in sorted(view.vectors, key=lambda name: name == vector_name):
        slots = view.selection(other).slots
        some = np.sort(generator.permutation(slots)[:number])
        if len(some):
            found[other] = view.vectors[other].gather(some).astype(np.float32)
    return found


def calibrate(
    index: Index, view: View, *, recall: float = 0.98, queries: Mapping[str, np.ndarray] | None = None
) -> Index:
    """The same index with the least efforts that reach a recall on every kind of query, with 99 % confidence.

    Args:
        index: Index of one kind of vectors of the view.
        view: View of the catalog.
        recall: recall@10, from 0 to 1.
        queries: Name -> ``[N, D]``; default `sample_queries`.
    """
    vector_name = index.info.vector_name
    queries = queries or sample_queries(view, vector_name)
    if index.exact or not queries:
        return index.with_budgets((), 1.0)
    reached, search_budgets = 1.0, []
    for selectivity, selection in _filters(view, vector_name):
        truths = {name: _exact(view, vector_name, vectors, selection) for name, vectors in queries.items()}
        for search_budget in _search_budgets(index, len(selection.slots)):
            trial = index.with_budgets([(1.0, search_budget)], 0)
            found = [_found(trial, view, vectors, selection, truths[name]) for name, vectors in queries.items()]
            if all(_surely(of_queries) >= recall for of_queries in found):
                break
        reached = min(reached, *(float(of_queries.mean()) for of_queries in found))
        search_budgets.append((selectivity, search_budget))
    return index.with_budgets(search_budgets, reached)


def measure(index: Index, view: View, queries: Mapping[str, np.ndarray]) -> list[Measured]:
    """Recall and latency of an index at the efforts that it was given, on every kind of query and share of rows."""
    vector_name, rows, megabytes = index.info.vector_name, [], index.megabytes()
    for selectivity, selection in _filters(view, vector_name):
        for name, vectors in queries.items():
            truth = _exact(view, vector_name, vectors, selection)
            taken = []
            for vector in vectors:
                begin = time.perf_counter()
                _top(index, view, vector, selection)
                taken.append(1000 * (time.perf_counter() - begin))
            p50, p99 = np.percentile(taken, [50, 99]).tolist()
            search_budget, recall = (
                index.info.budget_for(selectivity),
                float(_found(index, view, vectors, selection, truth).mean()),
            )
            rows.append(Measured(index.info.method, name, selectivity, search_budget, recall, p50, p99, megabytes))
    return rows


def tune(
    view: View,
    vector_name: str,
    *,
    recall: float = 0.98,
    methods: Sequence[str] = ("flat", "ivf-sq8", "ivf-pq", "hnsw"),
    megabytes: float | None = None,
    queries: Mapping[str, np.ndarray] | None = None,
) -> tuple[Index, list[Measured]]:
    """Build every method, find its least effort for a recall, measure it, and pick the quickest that fits.

    Args:
        view: View of the catalog.
        vector_name: Name of the vectors.
        recall: recall@10 to be reached.
        methods: To be tried.
        megabytes: Most memory that the index may take.
        queries: Name -> ``[N, D]``; default `sample_queries`.

    Returns:
        The best index, and all that was measured. Where none reaches the recall, the one that comes nearest.
    """
    queries = queries or sample_queries(view, vector_name)
    tried: list[tuple[Index, list[Measured]]] = []
    for method in methods:
        index = build_index(view.vectors[vector_name], vector_name=vector_name, state=view.state, method=method)
        index = calibrate(index, view, recall=recall, queries=queries)
        tried.append((index, measure(index, view, queries)))

    def worth(pair: tuple[Index, list[Measured]]) -> tuple[bool, bool, float]:
        index, rows = pair
        lowest = min((row.recall for row in rows), default=1.0)
        fits = megabytes is None or index.megabytes() <= megabytes
        slowest = max((row.p50 for row in rows if row.selectivity == 1), default=0.0)
        return not fits, lowest < recall, slowest if lowest >= recall else -lowest

    return min(tried, key=worth)[0], [row for _, rows in tried for row in rows]


def _filters(view: View, vector_name: str) -> Iterator[tuple[float, RowSelection]]:
    """No filter, then random ones of falling shares, the last of which leaves hardly too many rows to look at each."""
    everything = view.everything[vector_name]
    yield 1.0, everything
    draws = np.random.default_rng(0).random(len(everything.mask))
    fewest = 1.1 * view.vectors[vector_name].few / max(1, len(everything.slots))
    for selectivity in (*(s for s in SHARES if s > 1.5 * fewest), fewest):
        if selectivity < 1:
            yield selectivity, RowSelection(everything.mask & (draws < selectivity), filtered=True)


def _search_budgets(index: Index, rows: int) -> list[int]:
    """From little to much: rows to look at, or efSearch."""
    if index.info.method == "hnsw":
        return [16 << i for i in range(10)]
    return sorted({max(500, int(rows * selectivity)) for selectivity in np.geomspace(0.002, 0.64, 18)})


def _top(index: Index, view: View, vector: np.ndarray, selection: RowSelection) -> np.ndarray:
    """Exact scores of the K best that the index finds, best first."""
    vector_name = index.info.vector_name
    slots, _ = candidates(view, vector_name, index, vector, selection, K)
    return -np.sort(-exact_scores(view.vectors[vector_name].gather(slots), vector))[:K]


def _found(index: Index, view: View, queries: np.ndarray, selection: RowSelection, truth: np.ndarray) -> np.ndarray:
    """The share of each query's K best that is found, ``[N]``; rows that are as good as the K-th one count."""
    pairs = zip(queries, truth, strict=True)
    found = [(_top(index, view, vector, selection) >= last - 1e-6).sum() for vector, last in pairs]
    return np.array(found) / min(K, len(selection.slots))


def _surely(found: np.ndarray) -> float:
    """What the mean of a sample stands for with 99 % confidence, at least."""
    return float(found.mean() - 2.326 * found.std() / np.sqrt(len(found)))


def _exact(view: View, vector_name: str, queries: np.ndarray, selection: RowSelection) -> np.ndarray:
    """Score of the K-th best chosen row of every query, ``[N]``."""
    best = np.full((len(queries), K), -np.inf, np.float32)
    for start in range(0, len(selection.slots), _AT_ONCE):
        some = view.vectors[vector_name].gather(selection.slots[start : start + _AT_ONCE]).astype(np.float32)
        best = largest(queries @ some.T, K, best)
    return best[:, -1]
