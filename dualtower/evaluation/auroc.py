"""How well a score tells two classes apart, whatever the threshold: the area under the ROC curve."""

from __future__ import annotations

import numpy as np

from dualtower.errors import ConfigError
from dualtower.evaluation.bootstrap import Interval

__all__ = ["auroc", "auroc_interval"]

_ALPHA = 0.05


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive has a higher score than a negative, of equal scores one half.

    It is the rank statistic of H. B. Mann and D. R. Whitney (1947), counted exactly, and equals the area under the ROC
    curve (J. A. Hanley and B. J. McNeil, Radiology 143, 1982).

    Args:
        scores: Of any shape, finite or infinite.
        positive: Which are positives, bool, of the same shape.

    Raises:
        ConfigError: Shapes differ, a score is no number, or there are no positives or no negatives.
    """
    places, labels = _checked(scores, positive)
    return _area(*_counts(places, labels, np.ones(len(labels), np.int64)))


def auroc_interval(
    scores: np.ndarray,
    positive: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """The AUROC with its 95 % interval: a bootstrap by product, which draws all rows of a product together.

    Args:
        scores: ``[N]``.
        positive: bool ``[N]``.
        groups: Product of each row, ``[N]``; None lets each row stand for itself.
        bootstrap: Number of resamples; those without a positive or a negative say nothing and are left out.
        seed: Seed of the resamples.

    Raises:
        ConfigError: As of `auroc`.
    """
    places, labels = _checked(scores, positive)
    rng = np.random.default_rng(seed)
    _, number = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    count, found = int(number.max()) + 1, []
    for _ in range(bootstrap):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)[number]
        above, below = _counts(places, labels, weights)
        if above.any() and below.any():
            found.append(_area(above, below))
    value = auroc(scores, positive)
    if not found:
        return Interval(value)
    low, high = np.percentile(found, [100 * _ALPHA / 2, 100 * (1 - _ALPHA / 2)])
    return Interval(value, float(low), float(high))


def _checked(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each score among all different ones, int ``[N]``, and which are positives, bool ``[N]``."""
    if np.shape(scores) != np.shape(positive):
        raise ConfigError(f"{np.shape(scores)} scores were given with {np.shape(positive)} labels; give one for each")
    labels = np.asarray(positive, bool).reshape(-1)
    if labels.all() or not labels.any():
        raise ConfigError(f"AUROC compares two classes, and all {len(labels):,} labels are of one")
    if np.isnan(scores).any():
        raise ConfigError("AUROC: a score is NaN, which is neither high nor low")
    return np.unique(np.asarray(scores).reshape(-1), return_inverse=True)[1], labels


def _counts(places: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many positives and how many negatives have each score, ascending."""
    size = int(places.max()) + 1
    positives = np.bincount(places[labels], weights[labels], minlength=size)
    return positives, np.bincount(places[~labels], weights[~labels], minlength=size)


def _area(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Halves and whole numbers below 2^53, so that nothing is rounded before the division."""
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))
