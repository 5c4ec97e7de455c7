"""The area under the ROC curve: exact, also with ties."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dualtower.errors import ConfigError
from dualtower.evaluation.auroc import auroc, auroc_interval


@pytest.mark.parametrize("levels", [1, 2, 7, 10_000])
def test_as_scikit_learn_and_as_counted_pair_by_pair(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores, positive = rng.integers(0, levels, 300) / levels, rng.random(300) < 0.3
    above = scores[positive][:, None] - scores[~positive]
    counted = ((above > 0).sum() + (above == 0).sum() / 2) / above.size
    assert auroc(scores, positive) == pytest.approx(counted, abs=1e-15)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    maps = scores.reshape(3, 10, 10)
    assert auroc(maps, positive.reshape(maps.shape)) == auroc(scores, positive)


def test_ends() -> None:
    labels = np.array([False, False, True, True])
    assert auroc(np.arange(4.0), labels) == 1 and auroc(-np.arange(4.0), labels) == 0
    assert auroc(np.array([0, -np.inf, np.inf, np.inf]), labels) == 1


def test_intervals_cover_and_grow_with_the_dependence_of_rows() -> None:
    rng, inside = np.random.default_rng(0), 0
    for seed in range(60):
        positive = np.arange(160) % 2 == 1
        scores = rng.normal(size=160) + positive  # true AUROC: Phi(1 / sqrt 2) = 0.760
        found = auroc_interval(scores, positive, bootstrap=200, seed=seed)
        inside += found.low <= 0.760 <= found.high
    assert inside >= 52
    together = auroc_interval(np.repeat(scores, 9), np.repeat(positive, 9), groups=np.repeat(np.arange(160), 9), seed=1)
    alone = auroc_interval(np.repeat(scores, 9), np.repeat(positive, 9), seed=1)
    assert together.value == alone.value == found.value
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [True, True], "all 2 labels are of one"),
        ([1.0, np.nan], [True, False], "NaN"),
        ([1.0], [True, False], "one for each"),
        ([], [], "all 0 labels"),
    ],
)
def test_bad_input(scores: list, labels: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        auroc(np.array(scores), np.array(labels, bool))
