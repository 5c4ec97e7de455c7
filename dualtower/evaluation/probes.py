"""What vectors know of a label that nobody trained them for: the vote of the nearest rows, and one linear layer."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from dualtower.errors import ConfigError, UnknownName

__all__ = [
    "NEIGHBORS",
    "PROBE_METHODS",
    "ProbeMethod",
    "check_neighbors",
    "linear_probe",
    "nearest_vote",
    "predicted_labels",
]

ProbeMethod = Literal["knn", "linear"]
PROBE_METHODS: tuple[ProbeMethod, ...] = ("knn", "linear")
NEIGHBORS = 10
_AT_ONCE = 1024
_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_FOLDS, _JUDGED = 5, 1000
_STEPS = 60


def predicted_labels(
    method: ProbeMethod,
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    neighbors: int = NEIGHBORS,
    seed: int = 0,
) -> np.ndarray:
    """The class of each test row by `nearest_vote` or `linear_probe`, whose arguments these are, int64 ``[M]``.

    Raises:
        UnknownName: There is no such method.
    """
    if method not in PROBE_METHODS:
        raise UnknownName("probe method", method, PROBE_METHODS)
    if method == "knn":
        return nearest_vote(train, labels, test, classes=classes, neighbors=neighbors)
    return linear_probe(train, labels, test, classes=classes, seed=seed)


def nearest_vote(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, classes: int, neighbors: int = NEIGHBORS
) -> np.ndarray:
    """Give each row the class that most of its nearest neighbors by cosine have; among equals, that of the nearer ones.

    Args:
        train: Vectors of the rows with labels, float ``[N, D]``.
        labels: Their classes, int ``[N]``, from 0.
        test: Vectors of the rows to label, ``[M, D]``.
        classes: Number of classes.
        neighbors: How many have a vote, at least 1; all where there are fewer.

    Returns:
        int64 ``[M]``.

    Raises:
        ConfigError: There is no row with a label, no neighbor has a vote, or shapes do not fit.
    """
    check_neighbors(neighbors)
    known, asked = _unit(_checked(train, labels, test)), _unit(test)
    truth, count = torch.as_tensor(labels, dtype=torch.int64), min(neighbors, len(train))
    found = np.empty(len(test), np.int64)
    for start in range(0, len(test), _AT_ONCE):
        nearest = (asked[start : start + _AT_ONCE] @ known.T).topk(count, dim=1)
        # Similarities add up to far less than one vote, so that they decide among equal numbers of votes alone.
        worth = 1 + nearest.values.double() / (4 * count)
        votes = torch.zeros(len(worth), classes, dtype=torch.float64).scatter_add_(1, truth[nearest.indices], worth)
        found[start : start + len(worth)] = votes.argmax(1).numpy()
    return found


def check_neighbors(neighbors: int) -> None:
    """Refuse a vote of nobody.

    Raises:
        ConfigError: `neighbors` is below 1.
    """
    if neighbors < 1:
        raise ConfigError(f"a vote of {neighbors} neighbors; give 1 or more")


def linear_probe(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    seed: int = 0,
    steps: int = _STEPS,
    judged: int = _JUDGED,
) -> np.ndarray:
    """Label rows by multinomial logistic regression on the frozen vectors.

    Every dimension is brought to mean 0 and deviation 1 over the training rows. The weight of the quadratic penalty is
    the one that labels most held-out rows right: each of some fifths of the training rows is held out in turn, as many
    as make a thousand rows, so that few labels, where a fifth says little, are used to the last. L-BFGS then fits all
    of them, and is stopped after `steps` iterations where the penalty is too weak to make it converge sooner.

    Args:
        train: As in `nearest_vote`, like the other arguments.
        labels: Their classes.
        test: Vectors of the rows to label.
        classes: Number of classes.
        seed: Chooses the fifths.
        judged: How many rows are held out in all to choose the penalty, at least; of few, a quick look at one fifth.
        steps: Most iterations of L-BFGS for each penalty.

    Returns:
        int64 ``[M]``.

    Raises:
        ConfigError: There is no row with a label, or shapes do not fit.
    """
    vectors = torch.as_tensor(_checked(train, labels, test), dtype=torch.float32)
    mean, deviation = vectors.mean(0), vectors.std(0, correction=0).clamp(min=1e-6)
    vectors, asked = (vectors - mean) / deviation, (torch.as_tensor(test, dtype=torch.float32) - mean) / deviation
    truth = torch.as_tensor(labels, dtype=torch.int64)
    penalty, start = _chosen_penalty(vectors, truth, classes, seed=seed, steps=steps, judged=judged)
    return _scores(asked, _fitted(vectors, truth, start, penalty, steps)).argmax(1).numpy()


def _chosen_penalty(
    vectors: torch.Tensor, truth: torch.Tensor, classes: int, *, seed: int, steps: int, judged: int
) -> tuple[float, torch.Tensor]:
    """The penalty that labels most held-out rows right, and weights near its own to begin with, ``[D + 1, C]``.

    The strongest comes first, and each fit begins where the one before has ended. Once a weaker one labels fewer rows
    right, no other is tried; of equal ones, and where there is nothing to hold out, the strongest is taken.
    """
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))
    size = len(order) // _FOLDS
    starts = [fold * size for fold in range(min(_FOLDS, -(-judged // size)) if size else 0)]
    held_out = [order[start : start + size] for start in starts]
    fitted = [torch.cat([order[:start], order[start + size :]]) for start in starts]
    weights = [torch.zeros(vectors.shape[1] + 1, classes) for _ in starts]
    most, chosen, begun = -1, _PENALTIES[0], torch.zeros(vectors.shape[1] + 1, classes)
    for penalty in _PENALTIES if starts else ():
        weights = [
            _fitted(vectors[rows], truth[rows], before, penalty, steps)
            for rows, before in zip(fitted, weights, strict=True)
        ]
        right = sum(
            int((_scores(vectors[rows], found).argmax(1) == truth[rows]).sum())
            for rows, found in zip(held_out, weights, strict=True)
        )
        if right < most:
            break
        if right > most:
            most, chosen, begun = right, penalty, weights[0]
    return chosen, begun


def _fitted(
    vectors: torch.Tensor, truth: torch.Tensor, start: torch.Tensor, penalty: float, steps: int
) -> torch.Tensor:
    """Weights and biases ``[D + 1, C]`` that minimize cross entropy plus penalty."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(_scores(vectors, weights), truth) + penalty * weights[:-1].square().sum()
        loss.backward()
        return loss.item()

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _scores(vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.addmm(weights[-1], vectors, weights[:-1])


def _unit(vectors: np.ndarray) -> torch.Tensor:
    return F.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1)


def _checked(vectors: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    if not len(labels) or vectors.ndim != 2 or len(vectors) != len(labels) or vectors.shape[1:] != test.shape[1:]:
        raise ConfigError(
            f"a probe takes vectors [N, D] with labels [N], N > 0, and vectors [M, D] to label, not "
            f"{list(vectors.shape)}, {list(labels.shape)} and {list(test.shape)}"
        )
    return vectors
