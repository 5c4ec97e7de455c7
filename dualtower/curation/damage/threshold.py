"""Above which score an image counts as damaged, so that few clean ones do.

The threshold is an order statistic of the scores of clean images that the scorer has not seen (split conformal
prediction; S. Bates et al., "Testing for outliers with conformal p-values", https://arxiv.org/abs/2104.08279). Where
new clean images are like them, one in ``1 / false_alarms`` at most lies above it on average, whatever the distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dualtower.errors import ConfigError, DataError

__all__ = ["Threshold", "choose_threshold", "min_clean_rows"]

_DRAWS = 20_000


@dataclass(frozen=True)
class Threshold:
    """A score, and what is known of the share of clean images above it.

    Attributes:
        value: An image with a higher score counts as damaged.
        false_alarms: Share of new clean images above it, at most, on average over draws of the clean rows.
        clean_rows: Held-out clean images that it was chosen on.
        low: With these very rows, the share lies with 95 % probability at least here ...
        high: ... and at most here.
    """

    value: float
    false_alarms: float
    clean_rows: int
    low: float
    high: float

    def sentence(self) -> str:
        """What to know of it, in words."""
        return (
            f"Threshold {self.value:.4g}, chosen on {self.clean_rows:,} clean rows that were held out, for a "
            f"false-alarm rate of {_percent(self.false_alarms)}: of new clean rows like them, it flags "
            f"{_percent(self.low)} to {_percent(self.high)} (95 % range)."
        )


def min_clean_rows(false_alarms: float) -> int:
    """How many held-out clean rows a rate needs: 99 for 1 in 100.

    Raises:
        ConfigError: The rate is not between 0 and 1.
    """
    if not 0 < false_alarms < 1:
        raise ConfigError(
            f"a false-alarm rate of {false_alarms} is not possible; give one between 0 and 1, such as 0.01"
        )
    return max(1, math.ceil(round(1 / false_alarms - 1, 9)))  # rounded, since 1 / 0.01 - 1 may come out above 99


def choose_threshold(clean_scores: np.ndarray, false_alarms: float) -> Threshold:
    """Choose the least score of a clean row above which no more than the given share of new ones will lie on average.

    Args:
        clean_scores: Scores of held-out clean rows, ``[N]``.
        false_alarms: The share.

    Raises:
        ConfigError: The rate is not between 0 and 1.
        DataError: There are too few rows for it, or a score is no number.
    """
    count, needed = len(clean_scores), min_clean_rows(false_alarms)
    if count < needed:
        raise DataError(
            f"{count:,} held-out clean rows are too few for a false-alarm rate of {_percent(false_alarms)}, which "
            f"needs {needed:,}; give more clean rows, or type --false-alarms {_possible(count)}"
        )
    if np.isnan(clean_scores).any():
        raise DataError("a clean row has no score (NaN); the model may hold weights that are no numbers")
    place = math.ceil(round((count + 1) * (1 - false_alarms), 9))
    value = float(np.sort(clean_scores)[place - 1])
    # The share of new rows above the k-th of n scores is distributed as Beta(n + 1 - k, k).
    shares = np.random.default_rng(0).beta(count + 1 - place, place, _DRAWS)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Threshold(value, false_alarms, count, float(low), float(high))


def _possible(count: int) -> float:
    """The least rate that so many rows allow, rounded up to two digits."""
    rate = 1 / (count + 1)
    digits = 1 - math.floor(math.log10(rate))
    return min(0.99, math.ceil(rate * 10**digits) / 10**digits)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
