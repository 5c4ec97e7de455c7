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
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from dualtower.errors import ConfigError
from dualtower.evaluation.ranks import Ranks
from dualtower.evaluation.tie_groups import TieGroups, prefix_sums

__all__ = ["TieRule", "chance_levels", "metric_names", "per_query"]

TieRule = Literal["expected", "optimistic", "pessimistic"]
CUT_OFF = 10
"""Place at which nDCG and the cut-off MRR end."""


def metric_names(ks: Sequence[int] = (1, 5, 10)) -> list[str]:
    """Names of all metrics, in the order of the tables; `median_rank` is the only one where less is better."""
    return [
        *(f"recall@{k}" for k in ks),
        *(f"hit@{k}" for k in ks),
        "mrr",
        f"mrr@{CUT_OFF}",
        f"ndcg@{CUT_OFF}",
        "map",
        "median_rank",
    ]


def per_query(ranks: Ranks, *, ks: Sequence[int] = (1, 5, 10), ties: TieRule = "expected") -> dict[str, np.ndarray]:
    """Every metric for every query that has a relevant item.

    - ``recall@K``: share of the query's relevant items among the first K.
    - ``hit@K``: whether, or how probably, at least one relevant item is among the first K.
    - ``mrr``: reciprocal rank of the first relevant item.
    - ``mrr@10``: the same, 0 where it stands below place 10. Figures from lists of ten hits, as many leaderboards
      publish them under the name MRR, are this one.
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
    groups = TieGroups.of(ranks if ties == "expected" else _resolved(ranks, ties))
    harmonic = prefix_sums(1 / np.arange(1, groups.longest + 1))
    values = {f"recall@{k}": groups.mean_per_query(groups.share_within(k) * groups.relevant) for k in ks}
    values |= {f"hit@{k}": groups.hit(k) for k in ks}
    values["mrr"] = groups.reciprocal_rank(harmonic)
    values[f"mrr@{CUT_OFF}"] = groups.reciprocal_rank(harmonic, at=CUT_OFF)
    values[f"ndcg@{CUT_OFF}"] = groups.ndcg(_ideal_gain(ranks), CUT_OFF)
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
    log_factorial = prefix_sums(np.log(np.arange(1, size.max() + 1)))

    def found(x: int) -> float:
        rest = np.maximum(size - x, relevant)
        log_none = log_factorial[rest] - log_factorial[rest - relevant]
        log_none -= log_factorial[size] - log_factorial[size - relevant]
        return float(weight @ np.where(size - x < relevant, 1, -np.expm1(log_none)) / weight.sum())

    places = range(1, int(size.max()) + 1)
    low = bisect.bisect_left(places, 0.5 - 1e-9, key=found)
    high = bisect.bisect_right(places, 0.5 + 1e-9, key=found)
    return (places[low] + places[high]) / 2


def _ideal_gain(ranks: Ranks) -> np.ndarray:
    """Discounted gain of the best order of each judged query, ``[N_q]``."""
    discounts = prefix_sums(1 / np.log2(np.arange(2, CUT_OFF + 2)))
    query = np.searchsorted(ranks.judged, ranks.queries)
    order = np.lexsort((-ranks.grades, query))
    place = np.arange(len(query)) - ranks.starts[:-1][ranks.judged][query]
    at_place = np.diff(discounts, append=discounts[-1])[np.minimum(place, CUT_OFF)]
    return np.bincount(query, ranks.grades[order] * at_place, minlength=len(ranks.judged))


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
