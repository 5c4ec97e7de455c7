"""How far a figure can be trusted: bootstrap intervals and a paired test, both by product.

Queries of one product succeed or fail together, so products, not queries, are what is drawn again.

Where all resamples of a share agree (no hit at all on 49 queries, or one product only), the bootstrap would claim
certainty. There the interval is exact. Were the share of products unlike those that were seen larger than
``1 - (alpha / 2) ** (1 / n)``, n products would have shown one of them with more than ``1 - alpha / 2``; those unseen
may lie anywhere between the least and the greatest possible value. For shares of 0 and 1 these are the bounds of
C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26, 1934. They are wider than the score interval of E. B. Wilson (JASA 22, 1927), which A. Agresti and
B. A. Coull (The American Statistician 52, 1998) recommend for its mean coverage, and never cover less than they
promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dualtower.errors import ConfigError
from dualtower.evaluation.metrics import per_query
from dualtower.evaluation.ranks import Ranks

__all__ = ["Difference", "Interval", "intervals", "paired_test", "percentile_interval", "row_weights", "summarize"]

_ALPHA = 0.05
_SHARES = (0.0, 1.0)
_NUMBERS = 1 << 22  # of resampled weights held at a time: 32 MB


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; `low` and `high` are None where none was computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference(Interval):
    """Second model minus first, with the p-value of "there is no difference"."""

    p_value: float = 1.0


def summarize(
    ranks: Ranks,
    *,
    ks: Sequence[int] = (1, 5, 10),
    groups: Sequence[int] | np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Every metric under the expected rule for ties, with its interval.

    Args:
        ranks: Q queries.
        ks: Cut-offs of recall and hit.
        groups: Product code of each query, ``[Q]``; None lets each query stand for itself.
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed of the resamples.
    """
    chosen = None if groups is None else np.asarray(groups)[ranks.judged]
    return intervals(per_query(ranks, ks=ks), groups=chosen, bootstrap=bootstrap, seed=seed)


def intervals(
    values: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    limits: tuple[float, float] | None = _SHARES,
) -> dict[str, Interval]:
    """Means over queries (the median for ``median_rank``) with 95 % percentile intervals.

    Args:
        values: Metric name -> ``[N]`` over queries.
        groups: Product code of each query, ``[N]``.
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed of the resamples.
        limits: Least and greatest possible value of every metric but ``median_rank``, for the exact interval where all
            resamples agree; None where there are none.

    Raises:
        ConfigError: There is no query at all, or lengths differ.
    """
    names = list(values)
    table = np.stack([np.asarray(values[n], np.float64) for n in names], axis=1)
    if not len(table):
        raise ConfigError("no query has a relevant item in the gallery, so there is nothing to measure")
    group, count = _numbered(groups, len(table))
    points = [_center(name, table[:, i]) for i, name in enumerate(names)]
    if not bootstrap:
        return {name: Interval(point) for name, point in zip(names, points, strict=True)}
    sums = np.stack([np.bincount(group, table[:, i], minlength=count) for i in range(len(names))], axis=1)
    sizes = np.bincount(group, minlength=count)
    order = np.argsort(table[:, names.index("median_rank")]) if "median_rank" in names else np.arange(0)
    drawn = []
    for weights in _resamples(count, bootstrap, seed):
        means = (weights @ sums) / (weights @ sizes)[:, None]
        if len(order):
            column = names.index("median_rank")
            means[:, column] = _weighted_medians(table[order, column], weights, group[order])
        drawn.append(means)
    means = np.concatenate(drawn)
    return {
        name: percentile_interval(point, means[:, i], products=count, limits=None if name == "median_rank" else limits)
        for i, (name, point) in enumerate(zip(names, points, strict=True))
    }


def row_weights(
    rows: int, *, groups: np.ndarray | None = None, bootstrap: int = 1000, seed: int = 0
) -> Iterator[np.ndarray]:
    """How often each row counts in each resample by product, float64 ``[N]`` at a time, for figures that are no means.

    Args:
        rows: N.
        groups: Product code of each row, ``[N]``; None lets each row stand for itself.
        bootstrap: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        ConfigError: There are more or fewer groups than rows.
    """
    group, count = _numbered(groups, rows)
    for weights in _resamples(count, bootstrap, seed):
        for weight in weights:
            yield weight[group]


def percentile_interval(
    value: float, resampled: np.ndarray, *, products: int, limits: tuple[float, float] | None = _SHARES
) -> Interval:
    """The 95 % percentile interval of a figure, or the exact one where all resamples agree.

    Args:
        value: The figure.
        resampled: What it is in each resample, ``[B]``; NaN where it is nothing.
        products: How many products it is of.
        limits: As in `intervals`.
    """
    low, high = (float(np.nanpercentile(resampled, 100 * share)) for share in (_ALPHA / 2, 1 - _ALPHA / 2))
    if limits is not None and np.nanmax(resampled) - np.nanmin(resampled) <= 1e-9:
        return _exact(value, products, limits)
    return Interval(value, low, high)


def paired_test(
    first: np.ndarray,
    second: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two models on the same queries: mean of second - first, its 95 % interval, and a p-value.

    The interval is a bootstrap by product. The p-value is that of a randomization test: if the models were
    alike, all queries of a product could have been swapped between them (two-sided; smallest value
    ``1 / (resamples + 1)``).

    Args:
        first: Values of one metric, ``[N]`` over queries.
        second: Values of the other model on the same queries, ``[N]``.
        groups: Product code of each query, ``[N]``.
        resamples: Resamples of the bootstrap and of the test.
        seed: Seed of both.

    Raises:
        ConfigError: Lengths differ, or there are no queries.
    """
    if np.shape(first) != np.shape(second) or not len(first):
        raise ConfigError(f"cannot pair {len(first)} queries with {len(second)}; measure both on the same queries")
    gain = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    both = np.stack([first, second])
    limits = (-1.0, 1.0) if both.min() >= 0 and both.max() <= 1 else None  # shares, or ranks
    interval = intervals({"difference": gain}, groups=groups, bootstrap=resamples, seed=seed, limits=limits)[
        "difference"
    ]
    group, count = _numbered(groups, len(gain))
    sums = np.bincount(group, gain, minlength=count)
    random = np.random.default_rng([seed, 1])
    limit = abs(sums.sum()) * (1 - 1e-12)
    extreme = 0
    for size in _portions(resamples, count):
        signs = random.integers(0, 2, (size, count), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ sums) >= limit).sum())
    return Difference(interval.value, interval.low, interval.high, (1 + extreme) / (1 + resamples))


def _exact(value: float, products: int, limits: tuple[float, float]) -> Interval:
    """Where all products agree on `value`: how far unseen ones could draw the mean towards the limits."""
    like_them = (_ALPHA / 2) ** (1 / products)
    low, high = (like_them * value + (1 - like_them) * limit for limit in limits)
    return Interval(value, low, high)


def _center(name: str, values: np.ndarray) -> float:
    return float(np.median(values) if name == "median_rank" else values.mean())


def _numbered(groups: np.ndarray | None, queries: int) -> tuple[np.ndarray, int]:
    """Group number of each query, and how many groups there are."""
    if groups is None:
        return np.arange(queries), queries
    if len(groups) != queries:
        raise ConfigError(f"{len(groups)} groups were given for {queries} queries")
    known, number = np.unique(groups, return_inverse=True)
    return number.reshape(-1), len(known)


def _portions(total: int, width: int) -> Iterator[int]:
    """Split `total` rows of `width` numbers into portions of bounded memory."""
    step = max(1, _NUMBERS // width)
    for start in range(0, total, step):
        yield min(step, total - start)


def _resamples(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, float64 ``[portion, count]``, in portions; each row adds up to `count`."""
    random = np.random.default_rng(seed)
    for size in _portions(resamples, count):
        drawn = random.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(drawn.reshape(-1), minlength=size * count).reshape(size, count).astype(np.float64)


def _weighted_medians(ordered: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Median of each resample; `ordered` ``[N]`` ascends and `group` names the weight of each value."""
    medians = np.empty(len(weights))
    for i, weight in enumerate(weights):
        running = np.cumsum(weight[group])
        low = np.searchsorted(running, running[-1] / 2, side="left")
        high = np.searchsorted(running, running[-1] / 2, side="right")
        medians[i] = (ordered[low] + ordered[min(high, len(ordered) - 1)]) / 2
    return medians
