"""Groups of tied items: what every metric is computed from, in closed form, under the expected rule for ties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dualtower.evaluation.ranks import Ranks

__all__ = ["TieGroups", "prefix_sums"]


@dataclass(frozen=True, eq=False)
class TieGroups:
    """Groups of tied items that hold relevant ones. Arrays are ``[M]`` over groups, ascending by query and rank.

    Attributes:
        query: Number of the judged query.
        above: Items that score strictly higher.
        size: Items in the group.
        relevant: Relevant items in the group.
        gain: Sum of their grades.
        before: Relevant items in earlier groups of the query.
        starts: First group of each query, ``[N_q]``.
    """

    query: np.ndarray
    above: np.ndarray
    size: np.ndarray
    relevant: np.ndarray
    gain: np.ndarray
    before: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, ranks: Ranks) -> TieGroups:
        """The groups of the judged queries of some ranks."""
        query = np.searchsorted(ranks.judged, ranks.queries)
        order = np.lexsort((ranks.above, query))
        q, above = query[order], ranks.above[order]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(q) != 0) | (np.diff(above) != 0)])[: len(q)])
        return cls.sorted(
            query=q[first],
            above=above[first],
            size=ranks.tied[order][first] + 1,
            relevant=np.diff(np.append(first, len(q))),
            gain=np.add.reduceat(ranks.grades[order], first) if len(first) else np.zeros(0),
            queries=len(ranks.judged),
        )

    @classmethod
    def sorted(
        cls,
        *,
        query: np.ndarray,
        above: np.ndarray,
        size: np.ndarray,
        relevant: np.ndarray,
        gain: np.ndarray,
        queries: int,
    ) -> TieGroups:
        """From groups that ascend by query and rank; every one of the `queries` has at least one."""
        starts = np.searchsorted(query, np.arange(queries))
        seen = prefix_sums(relevant)[:-1]
        return cls(query, above, size, relevant, gain, before=seen - seen[starts][query], starts=starts)

    @property
    def longest(self) -> int:
        """Last place that any group reaches."""
        return int((self.above + self.size).max(initial=1))

    def sum_per_query(self, values: np.ndarray) -> np.ndarray:
        """Add up the groups of each query."""
        return np.add.reduceat(values, self.starts) if len(self.starts) else np.zeros(0)

    def mean_per_query(self, values: np.ndarray) -> np.ndarray:
        """Sums over the groups of each query, per relevant item."""
        return self.sum_per_query(values) / self.sum_per_query(self.relevant)

    def share_within(self, k: int) -> np.ndarray:
        """Probability that an item of the group is among the first `k`."""
        return np.clip(k - self.above, 0, self.size) / self.size

    def hit(self, k: int) -> np.ndarray:
        """Only the first group matters: a later one is reached only behind all of it.

        The chance of a miss is that of drawing ``k - above`` irrelevant items from the group, without replacement.
        """
        above, size, relevant = (x[self.starts] for x in (self.above, self.size, self.relevant))
        drawn = np.clip(k - above, 0, size)
        miss = np.ones(len(above))
        for i in range(int(drawn.max(initial=0))):
            left = np.maximum(size - relevant - i, 0) / np.maximum(size - i, 1)
            miss *= np.where(i < drawn, left, 1)
        return 1 - miss

    def reciprocal_rank(self, harmonic: np.ndarray, *, at: int | None = None) -> np.ndarray:
        """Mean of 1 / rank of the first relevant item of the first group; below place `at` it counts as 0."""
        above, size, relevant = (x[self.starts] for x in (self.above, self.size, self.relevant))
        last = above + size if at is None else np.minimum(above + size, at)
        result = (harmonic[last] - harmonic[np.minimum(above, last)]) / size
        result = np.where(size == 1, (above < last) / (above + 1), result)
        several = np.flatnonzero((relevant > 1) & (size > 1))
        kinds, of_query = np.unique(np.stack([above, size, relevant])[:, several], axis=1, return_inverse=True)
        means = np.array([_mean_reciprocal_of_first(a, s, r, at) for a, s, r in kinds.T.tolist()])
        if len(several):
            result[several] = means[of_query.reshape(-1)]
        return result

    def first_rank(self) -> np.ndarray:
        """Mean rank of the first of `relevant` items spread at random over `size` places."""
        above, size, relevant = (x[self.starts] for x in (self.above, self.size, self.relevant))
        return above + (size + 1) / (relevant + 1)

    def average_precision(self, harmonic: np.ndarray) -> np.ndarray:
        """Precision at a relevant item in place i of its group, averaged over i = 1 .. size.

        The other ``relevant - 1`` items of the group stand before place i with chance ``(i - 1) / (size - 1)``
        each, so the precision there is ``(before + 1 + (relevant - 1)(i - 1) / (size - 1)) / (above + i)``.
        """
        reciprocals = np.where(
            self.size == 1, 1 / (self.above + 1), harmonic[self.above + self.size] - harmonic[self.above]
        )
        others = (self.relevant - 1) / np.maximum(self.size - 1, 1)
        total = (self.before + 1) * reciprocals + others * (self.size - (self.above + 1) * reciprocals)
        return self.mean_per_query(self.relevant * total / self.size)

    def ndcg(self, ideal: np.ndarray, at: int) -> np.ndarray:
        """Each grade times the mean discount over the places of its group, over the ideal sum ``[N_q]``."""
        discounts = prefix_sums(1 / np.log2(np.arange(2, at + 2)))
        last, first = np.minimum(self.above + self.size, at), np.minimum(self.above, at)
        return self.sum_per_query(self.gain * (discounts[last] - discounts[first]) / self.size) / ideal


def _mean_reciprocal_of_first(above: int, size: int, relevant: int, at: int | None) -> float:
    """Mean of ``1 / (above + i)``, i being the first place of `relevant` items spread at random over `size`.

    P(i) = C(size - i, relevant - 1) / C(size, relevant), built up by the ratio of neighbors.
    """
    i = np.arange(1, size - relevant + 2)
    chance = np.concatenate([[relevant / size], 1 - (relevant - 1) / (size - i[:-1])]).cumprod()
    counted = slice(None) if at is None else slice(max(0, at - above))
    return float((chance / (above + i))[counted].sum())


def prefix_sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1 ... N values."""
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
