"""Sample queries for the report: which ones, what they found, and where the right answers stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dualtower.evaluation.directions import Direction
from dualtower.evaluation.scores import Scores

__all__ = ["Example", "Placed", "find_examples", "sample_scores"]

MAX_RIGHT = 3
"""Right answers shown beside the hits."""


@dataclass(frozen=True)
class Placed:
    """A gallery item and how it stands to a query.

    Attributes:
        item: Gallery position.
        rank: From 1; of items of equal score the mean over their orders.
        score: Similarity to the query.
        relevant: Whether it is a right answer.
    """

    item: int
    rank: float
    score: float
    relevant: bool

    @property
    def label(self) -> str:
        """Rank and score, ``17: 0.412``."""
        return f"{self.rank:,.1f}".removesuffix(".0") + f": {self.score:.3f}"


@dataclass(frozen=True)
class Example:
    """A query with its best hits and the best right answers that are not among them.

    Attributes:
        query: Position among all queries.
        hits: Best first.
        missed: Best first, at most three.
        first_rank: Rank of the first right answer.
    """

    query: int
    hits: list[Placed]
    missed: list[Placed]
    first_rank: float


def find_examples(direction: Direction, *, examples: int, hits: int, seed: int) -> dict[str, list[Example]]:
    """Random, best and worst queries by the reciprocal rank, with their hits; no product comes twice in a list.

    Args:
        direction: A way of searching.
        examples: Queries of each kind.
        hits: Hits of each query.
        seed: Chooses the random queries, and among equally good or bad ones.
    """
    chosen = {kind: direction.ranks.judged[which] for kind, which in _choose(direction, examples, seed).items()}
    found = {}
    for kind, queries in chosen.items():
        if len(queries):
            positions, scores = direction.top_hits(queries, k=hits)
            found[kind] = [
                _example(direction, int(q), p, s) for q, p, s in zip(queries, positions, scores, strict=True)
            ]
    return found


def sample_scores(direction: Direction, *, most: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of relevant pairs and of pairs that are not, up to `most` of each, drawn at random: float32 ``[N]``."""
    random = np.random.default_rng(seed)
    ranks, gallery = direction.ranks, len(direction.gallery.keys)
    relevant = ranks.scores if len(ranks.scores) <= most else random.choice(ranks.scores, most, replace=False)
    queries, items = random.choice(ranks.judged, most), random.integers(gallery, size=most)
    other = ~np.isin(queries * gallery + items, ranks.queries * gallery + ranks.items)
    if direction.exclude is not None:
        other &= direction.exclude[queries] != items
    scores = Scores(direction.queries.embeddings, direction.gallery.embeddings, direction.similarity)
    return relevant, scores.exact(queries[other], items[other])


def _choose(direction: Direction, examples: int, seed: int) -> dict[str, np.ndarray]:
    """Positions among the judged queries."""
    values = direction.per_query["mrr"]
    shuffled = np.random.default_rng(seed).permutation(len(values))
    by_value = shuffled[np.argsort(-values[shuffled], kind="stable")]
    worst = _of_different_products(direction, by_value[::-1][: len(values) // 2], examples)
    best = _of_different_products(direction, by_value[~np.isin(by_value, worst)], examples)
    rest = _of_different_products(direction, shuffled[~np.isin(shuffled, np.concatenate([best, worst]))], examples)
    return {"Random": rest, "Best": best, "Worst": worst}


def _of_different_products(direction: Direction, queries: np.ndarray, number: int) -> np.ndarray:
    """The first queries of each product, in their order."""
    _, first = np.unique(direction.groups[queries], return_index=True)
    return queries[np.sort(first)][:number]


def _example(direction: Direction, query: int, positions: np.ndarray, scores: np.ndarray) -> Example:
    ranks = direction.ranks
    own = slice(ranks.starts[query], ranks.starts[query + 1])
    expected = dict(zip(ranks.items[own].tolist(), ranks.expected[own].tolist(), strict=True))
    right = sorted(
        (Placed(int(i), float(r), float(s), True)
         for i, r, s in zip(ranks.items[own], ranks.expected[own], ranks.scores[own], strict=True)),
        key=lambda placed: placed.rank,
    )  # fmt: skip
    hits = [
        Placed(item, expected.get(item, place), score, item in expected)
        for place, (item, score) in enumerate(zip(positions.tolist(), scores.tolist(), strict=True), 1)
        if item >= 0
    ]
    shown = {placed.item for placed in hits}
    return Example(query, hits, [p for p in right if p.item not in shown][:MAX_RIGHT], right[0].rank)
