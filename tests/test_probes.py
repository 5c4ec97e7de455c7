"""What labels vectors predict: the vote of neighbors and the linear probe, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from dualtower.errors import ConfigError, UnknownName
from dualtower.evaluation import probes
from dualtower.evaluation.probes import linear_probe, nearest_vote, predicted_labels


def case(rows: int = 300, classes: int = 5, width: int = 8, spread: float = 1.0) -> tuple[np.ndarray, ...]:
    """Vectors round a center for each class: training rows, their classes, test rows, their classes."""
    random = np.random.default_rng(3)
    centers = random.normal(size=(classes, width))
    labels = random.integers(classes, size=2 * rows)
    vectors = (centers[labels] + spread * random.normal(size=(2 * rows, width))).astype(np.float32)
    return vectors[:rows], labels[:rows], vectors[rows:], labels[rows:]


@pytest.mark.parametrize("neighbors", [1, 3, 10, 299])
def test_the_vote_is_that_of_scikit_learn(neighbors: int) -> None:
    """Where one class has more votes than any other; what decides among equals differs."""
    train, labels, test, _ = case()
    oracle = KNeighborsClassifier(neighbors, metric="cosine").fit(train, labels)
    votes = np.sort(oracle.predict_proba(test), axis=1)
    clear = votes[:, -1] - votes[:, -2] > 1e-9
    assert clear.mean() > 0.8
    found = nearest_vote(train, labels, test, classes=5, neighbors=neighbors)
    np.testing.assert_array_equal(found[clear], oracle.predict(test)[clear])


def test_among_equal_votes_the_nearer_rows_decide() -> None:
    angles = np.array([0.1, -0.2, -0.3, 0.4, 2.0])  # from the row that asks, whose angle is 0
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    test = np.array([[1.0, 0.0]])
    assert nearest_vote(train, np.array([1, 0, 0, 1, 2]), test, classes=3, neighbors=4).tolist() == [0]
    assert nearest_vote(train, np.array([1, 0, 0, 0, 2]), test, classes=3, neighbors=2).tolist() == [1]
    assert nearest_vote(train, np.array([1, 2, 2, 0, 2]), test, classes=3, neighbors=99).tolist() == [2]


def test_lengths_do_not_matter_and_blocks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, _ = case()
    whole = nearest_vote(train, labels, test, classes=5)
    monkeypatch.setattr(probes, "_AT_ONCE", 7)
    scaled = np.random.default_rng(0).uniform(0.1, 9, len(train)).astype(np.float32)
    np.testing.assert_array_equal(nearest_vote(train * scaled[:, None], labels, test, classes=5), whole)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_fit_is_that_of_scikit_learn(penalty: float) -> None:
    train, labels, _, _ = case()
    start = torch.zeros(train.shape[1] + 1, 5)
    found = probes._fitted(torch.from_numpy(train), torch.from_numpy(labels), start, penalty, 500).numpy()
    strength = 1 / (2 * penalty * len(labels))  # scikit-learn's C weighs a sum of losses against half of the squares
    oracle = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(train.astype(np.float64), labels)
    np.testing.assert_allclose(found[:-1].T, oracle.coef_, atol=5e-3)
    biases = oracle.intercept_ - oracle.intercept_.mean()
    np.testing.assert_allclose(found[-1] - found[-1].mean(), biases, atol=3e-2)  # no penalty holds them


def test_a_linear_probe_is_as_good_as_scikit_learns_best() -> None:
    train, labels, test, truth = case(spread=1.5)
    scaled = (train - train.mean(0)) / train.std(0)
    fits = [LogisticRegression(C=c, max_iter=2000).fit(scaled, labels) for c in (0.01, 0.1, 1, 10)]
    best = max(fit.score((test - train.mean(0)) / train.std(0), truth) for fit in fits)
    found = linear_probe(train, labels, test, classes=5)
    assert (found == truth).mean() > best - 0.02
    np.testing.assert_array_equal(found, linear_probe(train, labels, test, classes=5))  # no global state


def test_scales_of_dimensions_do_not_matter() -> None:
    train, labels, test, _ = case()
    scale = np.logspace(-3, 3, train.shape[1]).astype(np.float32)
    whole = linear_probe(train, labels, test, classes=5)
    assert (linear_probe(train * scale + 5 * scale, labels, test * scale + 5 * scale, classes=5) == whole).mean() > 0.99


def test_noise_gets_a_strong_penalty_and_signal_a_weak_one() -> None:
    train, labels, _, _ = case(100, spread=0.01)
    vectors, truth = torch.from_numpy(train), torch.from_numpy(labels)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 40)).astype(np.float32))
    strong, _ = probes._chosen_penalty(noise, truth, 5, seed=0, steps=20, judged=1000)
    both = torch.cat([vectors, noise], dim=1)
    weak, start = probes._chosen_penalty(both, truth, 5, seed=0, steps=20, judged=1000)
    assert strong >= 1e-2 and start.shape == (49, 5)
    assert linear_probe(both.numpy(), labels, both.numpy(), classes=5).tolist() == labels.tolist()
    assert weak <= 1e-1


def test_fewer_rows_than_folds() -> None:
    """Two rows of two classes: nothing can be held out, and the strongest penalty still tells them apart."""
    train = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert linear_probe(train, np.array([1, 0]), train, classes=2).tolist() == [1, 0]
    assert linear_probe(train[:1], np.array([1]), train, classes=2).tolist() == [1, 1]  # one class alone


def test_no_rows_to_label() -> None:
    train, labels, test, _ = case(20)
    for method in ("knn", "linear"):
        assert predicted_labels(method, train, labels, test[:0], classes=5).shape == (0,)


def test_bad_input_is_named() -> None:
    train, labels, test, _ = case(20)
    for probe in (nearest_vote, linear_probe):
        with pytest.raises(ConfigError, match=r"labels \[N\], N > 0"):
            probe(train[:0], labels[:0], test, classes=5)
        with pytest.raises(ConfigError, match=r"not \[20, 8\], \[20\] and \[20, 7\]"):
            probe(train, labels, test[:, :7], classes=5)
        with pytest.raises(ConfigError, match=r"not \[20, 8\], \[19\] and"):
            probe(train, labels[:19], test, classes=5)
    with pytest.raises(ConfigError, match="0 neighbors; give 1 or more"):
        nearest_vote(train, labels, test, classes=5, neighbors=0)
    with pytest.raises(UnknownName, match=r"no probe method 'linaer'.*Did you mean 'linear'"):
        predicted_labels("linaer", train, labels, test, classes=5)
