"""Exact ranks of the relevant items, in bounded memory.

A rank is kept as two counts, how many items score strictly higher and how many tie, so that every rule for ties
can be applied afterwards and the order of the gallery can never matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dualtower.errors import ConfigError
from dualtower.evaluation.counting import count_irrelevant
from dualtower.evaluation.relevance import Relevance
from dualtower.evaluation.scores import Scores
from dualtower.losses.similarity import Similarity

__all__ = ["Ranks", "both_ways", "retrieval_ranks"]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where the relevant items of each query stand, in compressed rows like `Relevance`.

    Attributes:
        starts: int64 ``[Q + 1]``; queries without relevant items own no entries.
        items: Gallery positions of the relevant items, int64 ``[N]``.
        grades: float64 ``[N]``.
        above: Number of gallery items that score strictly higher, relevant ones included, int64 ``[N]``.
        tied: Number of other gallery items with the same score, relevant ones included, int64 ``[N]``.
        scores: float32 ``[N]``.
        gallery_sizes: Number of items that compete for each query (without its own row), int64 ``[Q]``.
    """

    starts: np.ndarray
    items: np.ndarray
    grades: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    scores: np.ndarray
    gallery_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """Number of relevant items of each query, int64 ``[Q]``."""
        return np.diff(self.starts)

    @property
    def queries(self) -> np.ndarray:
        """Query position of each entry, int64 ``[N]``."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def judged(self) -> np.ndarray:
        """Positions of the queries that have relevant items: those that metrics are about."""
        return np.flatnonzero(self.counts)

    @property
    def expected(self) -> np.ndarray:
        """Rank of each relevant item, from 1, on average over the orders of tied items, float64 ``[N]``."""
        return self.above + 1 + self.tied / 2

    @property
    def optimistic(self) -> np.ndarray:
        """Rank if the item came first among those that tie with it, int64 ``[N]``."""
        return self.above + 1

    @property
    def pessimistic(self) -> np.ndarray:
        """Rank if the item came last among those that tie with it, int64 ``[N]``."""
        return self.above + 1 + self.tied

    def at_random(self) -> Ranks:
        """The ranks of a model that knows nothing: all gallery items tie. Its metrics are the chance level."""
        tied = self.gallery_sizes[self.queries] - 1
        return replace(self, above=np.zeros_like(self.above), tied=tied, scores=np.zeros_like(self.scores))


def retrieval_ranks(
    queries: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    relevance: Relevance,
    *,
    exclude: np.ndarray | None = None,
    similarity: Similarity = "cosine",
    block: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Ranks:
    """Rank the relevant gallery items of each query exactly, without ever holding Q x G scores.

    Args:
        queries: Embeddings ``[Q, D]``.
        gallery: Embeddings ``[G, D]``.
        relevance: Q queries over G items.
        exclude: Gallery position of each query's own row, int ``[Q]``, -1 for none (`self_positions`). It neither
            competes nor counts as relevant.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        block: Queries and gallery items compared at a time; it has no influence on the result.
        device: What compares, an accelerator or (None) the CPU's cores; nor has that.

    Raises:
        ConfigError: Shapes do not fit, or embeddings are not finite.
    """
    scores = _scores(queries, gallery, relevance, similarity)
    excluded = None if exclude is None else np.asarray(exclude, np.int64)
    if excluded is not None:
        if len(excluded) != len(relevance):
            raise ConfigError(f"exclude has {len(excluded)} positions for {len(relevance)} queries")
        relevance = relevance.without(excluded)
    exact = scores.exact(relevance.queries, relevance.items)
    (counted,) = count_irrelevant(scores, (relevance, exact), None, excluded=excluded, block=block, device=device)
    return _finish(relevance, exact, *counted, excluded=excluded)


def both_ways(
    queries: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    relevance: Relevance,
    *,
    similarity: Similarity = "cosine",
    block: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> tuple[Ranks, Ranks]:
    """Rank the gallery for each query and the queries for each gallery item, with one matrix product.

    Args:
        queries: Embeddings ``[Q, D]``.
        gallery: Embeddings ``[G, D]``.
        relevance: Q queries over G items; backwards it is transposed.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        block: Queries and gallery items compared at a time; it has no influence on the result.
        device: What compares, an accelerator or (None) the CPU's cores; nor has that.

    Returns:
        Ranks of the Q queries over G items, and of the G items over the Q queries.
    """
    scores = _scores(queries, gallery, relevance, similarity)
    back = relevance.transpose()
    exact = scores.exact(relevance.queries, relevance.items)
    exact_back = exact[np.lexsort((relevance.queries, relevance.items))]
    forward, backward = count_irrelevant(
        scores, (relevance, exact), (back, exact_back), excluded=None, block=block, device=device
    )
    return _finish(relevance, exact, *forward), _finish(back, exact_back, *backward)


def _scores(
    queries: np.ndarray | Tensor, gallery: np.ndarray | Tensor, relevance: Relevance, similarity: Similarity
) -> Scores:
    scores = Scores(queries, gallery, similarity)
    if scores.shape != (len(relevance), relevance.gallery_size):
        raise ConfigError(
            f"embeddings of {scores.shape[0]} queries and {scores.shape[1]} gallery items do not fit relevance "
            f"of {len(relevance)} queries over {relevance.gallery_size} items"
        )
    return scores


def _finish(
    relevance: Relevance,
    scores: np.ndarray,
    above: np.ndarray,
    tied: np.ndarray,
    *,
    excluded: np.ndarray | None = None,
) -> Ranks:
    """Add to the counts of irrelevant items those of the relevant items of the same query."""
    query = relevance.queries
    order = np.lexsort((-scores, query))
    q, s = query[order], scores[order]
    new_query = np.concatenate([[True], q[1:] != q[:-1]])[: len(q)]
    new_group = new_query | np.concatenate([[True], s[1:] != s[:-1]])[: len(q)]
    group = np.cumsum(new_group) - 1  # of equal score within a query
    group_start = np.flatnonzero(new_group)
    group_size = np.bincount(group, minlength=len(group_start))
    higher, equal = np.empty_like(above), np.empty_like(tied)
    higher[order] = group_start[group] - relevance.starts[q]
    equal[order] = group_size[group] - 1
    sizes = np.full(len(relevance), relevance.gallery_size)
    if excluded is not None:
        sizes -= excluded >= 0
    return Ranks(relevance.starts, relevance.items, relevance.grades, above + higher, tied + equal, scores, sizes)
