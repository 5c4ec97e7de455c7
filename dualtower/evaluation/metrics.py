"""Retrieval metrics from exact ranks, under a stated rule for ties.

Items of equal score have no order. The *expected* rule gives each metric its mean over all orders of the tied
items, exactly and in closed form, however many relevant items stand in one group of ties (F. McSherry and
M. Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008). *optimistic* puts the relevant items of a group first, *pessimistic* last.

The chance level of a metric is its expected value when the whole gallery ties.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from dualtower.errors import ConfigError
from dualtower.evaluation.ranks import Ranks

__all__ = ["TieRule", "chance_levels", "metric_names", "per_query"]

TieRule = Literal["expected", "optimistic", "pessimistic"]
NDCG_AT = 10


def metric_names(ks: Sequence[int] = (1, 5, 10)) -> list[str]:
    """Names of all metrics, in the order of the tables; `median_rank` is the only one where less is better."""
    return [*(f"recall@{k}" for k in ks), *(f"hit@{k}" for k in ks), "mrr", f"ndcg@{NDCG_AT}", "map", "median_rank"]


def per_query(ranks: Ranks, *, ks: Sequence[int] = (1, 5, 10), ties: TieRule = "expected") -> dict[str, np.ndarray]:
    """Every metric for every query that has a relevant item.

    - ``recall@K``: share of the query's relevant items among the first K.
    - ``hit@K``: whether, or how probably, at least one relevant item is among the first K.
    - ``mrr``: reciprocal rank of the first relevant item.
    - ``ndcg@10``: discounted gain with the grade as the gain, over that of the best order (as in trec_eval).
    - ``map``: precision at each relevant item, averaged over the relevant items.
    - ``median_rank``: rank of the first relevant item; its median over the queries is the metric.

    Args:
        ranks: N_q queries with relevant items (`Ranks.judged`).
        ks: Cut-offs of recall and hit.
        ties: ``expected``, ``optimistic`` or ``pessimistic``.

    Returns:
        Metric name -> float64 ``[N_q]``, in the order of `Ranks.judged`.

    Raises:
        ConfigError: A cut-off is below 1, or the rule is unknown.
    """
    if ties not in get_args(TieRule):
        raise ConfigError(f"no rule for ties {ties!r}; known: {', '.join(get_args(TieRule))}")
    if not ks or min(ks) < 1:
        raise ConfigError(f"cut-offs are {tuple(ks)}; give one or more, each at least 1")
    groups = _Groups.of(ranks if ties == "expected" else _resolved(ranks, ties))
    harmonic = _prefix_sums(1 / np.arange(1, groups.longest + 1))
    values = {f"recall@{k}": groups.mean_per_query(groups.share_within(k) * groups.relevant) for k in ks}
    values |= {f"hit@{k}": groups.hit(k) for k in ks}
    values["mrr"] = groups.reciprocal_rank(harmonic)
    values[f"ndcg@{NDCG_AT}"] = groups.ndcg(ranks)
    values["map"] = groups.average_precision(harmonic)
    values["median_rank"] = groups.first_rank()
    return values


def chance_levels(ranks: Ranks, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What each metric would be on average if the gallery were put in random order."""
    values = per_query(ranks.at_random(), ks=ks)
    levels = {name: float(np.mean(v)) for name, v in values.items()}
    return levels | {"median_rank": _median_first_rank(ranks)}


def _median_first_rank(ranks: Ranks) -> float:
    """Median, over queries and random orders, of the rank of the first relevant item.

    It is lower than the median of the queries' mean ranks, because the rank of the first of several items is skewed.
    With R relevant items among G, none of the first x is relevant with chance C(G - x, R) / C(G, R).
    """
    if not len(ranks.judged):
        return float("nan")
    kinds = np.stack([ranks.gallery_sizes, ranks.counts])[:, ranks.judged]
    (size, relevant), weight = np.unique(kinds, axis=1, return_counts=True)
    log_factorial = _prefix_sums(np.log(np.arange(1, size.max() + 1)))

    def found(x: int) -> float:
        rest = np.maximum(size - x, relevant)
        log_none = log_factorial[rest] - log_factorial[rest - relevant]
        log_none -= log_factorial[size] - log_factorial[size - relevant]
        return float(weight @ np.where(size - x < relevant, 1, -np.expm1(log_none)) / weight.sum())

    places = range(1, int(size.max()) + 1)
    low = bisect.bisect_left(places, 0.5 - 1e-9, key=found)
    high = bisect.bisect_right(places, 0.5 + 1e-9, key=found)
    return (places[low] + places[high]) / 2


@dataclass(frozen=True, eq=False)
class _Groups:
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
    def of(cls, ranks: Ranks) -> _Groups:
        query = np.searchsorted(ranks.judged, ranks.queries)
        order = np.lexsort((ranks.above, query))
        q, above = query[order], ranks.above[order]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(q) != 0) | (np.diff(above) != 0)])[: len(q)])
        relevant = np.diff(np.append(first, len(q)))
        starts = np.searchsorted(q[first], np.arange(len(ranks.judged)))
        seen = _prefix_sums(relevant)[:-1]
        return cls(
            query=q[first],
            above=above[first],
            size=ranks.tied[order][first] + 1,
            relevant=relevant,
            gain=np.add.reduceat(ranks.grades[order], first) if len(first) else np.zeros(0),
            before=seen - seen[starts][q[first]],
            starts=starts,
        )

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

    def reciprocal_rank(self, harmonic: np.ndarray) -> np.ndarray:
        """Mean of 1 / rank of the first relevant item of the first group."""
        above, size, relevant = (x[self.starts] for x in (self.above, self.size, self.relevant))
        result = (harmonic[above + size] - harmonic[above]) / size
        result = np.where(size == 1, 1 / (above + 1), result)
        several = np.flatnonzero((relevant > 1) & (size > 1))
        kinds, of_query = np.unique(np.stack([above, size, relevant])[:, several], axis=1, return_inverse=True)
        means = np.array([_mean_reciprocal_of_first(*kind) for kind in kinds.T.tolist()])
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

    def ndcg(self, ranks: Ranks) -> np.ndarray:
        """Each grade times the mean discount over the places of its group, over the ideal sum."""
        discounts = _prefix_sums(1 / np.log2(np.arange(2, NDCG_AT + 2)))
        last, first = np.minimum(self.above + self.size, NDCG_AT), np.minimum(self.above, NDCG_AT)
        gained = self.sum_per_query(self.gain * (discounts[last] - discounts[first]) / self.size)
        query = np.searchsorted(ranks.judged, ranks.queries)
        order = np.lexsort((-ranks.grades, query))
        place = np.arange(len(query)) - ranks.starts[:-1][ranks.judged][query]
        at_place = np.diff(discounts, append=discounts[-1])[np.minimum(place, NDCG_AT)]
        return gained / np.bincount(query, ranks.grades[order] * at_place, minlength=len(ranks.judged))


def _mean_reciprocal_of_first(above: int, size: int, relevant: int) -> float:
    """Mean of ``1 / (above + i)``, i being the first place of `relevant` items spread at random over `size`.

    P(i) = C(size - i, relevant - 1) / C(size, relevant), built up by the ratio of neighbours.
    """
    i = np.arange(1, size - relevant + 2)
    chance = np.concatenate([[relevant / size], 1 - (relevant - 1) / (size - i[:-1])]).cumprod()
    return float((chance / (above + i)).sum())


def _resolved(ranks: Ranks, ties: TieRule) -> Ranks:
    """Ranks without ties: the relevant items of a group come first, best grade first; or last, best grade last."""
    best_first = ties == "optimistic"
    query = ranks.queries
    order = np.lexsort((-ranks.grades if best_first else ranks.grades, ranks.above, query))
    q, above, tied = query[order], ranks.above[order], ranks.tied[order]
    new = np.concatenate([[True], (np.diff(q) != 0) | (np.diff(above) != 0)])[: len(q)]
    first = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    place = np.arange(len(q)) - first[group]
    if not best_first:
        place += tied + 1 - np.diff(np.append(first, len(q)))[group]
    settled = np.empty_like(ranks.above)
    settled[order] = above + place
    return replace(ranks, above=settled, tied=np.zeros_like(ranks.tied))


def _prefix_sums(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
