"""The one blocked top-k: on both of its ways, in one block or many, the numbers of a full sort."""

from __future__ import annotations

import numpy as np
import pytest

from dualtower.topk import largest


def case(kind: str, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(3)
    if kind == "ties":
        return random.integers(-2, 3, (rows, columns)).astype(np.float32)
    scores = random.normal(size=(rows, columns)).astype(np.float32)
    if kind == "left out":
        scores[random.random((rows, columns)) < 0.9] = -np.inf
        scores[0] = -np.inf
    return scores


@pytest.mark.parametrize("kind", ["distinct", "ties", "left out"])
@pytest.mark.parametrize("columns", [1, 7, 64, 640, 5000])
@pytest.mark.parametrize("k", [1, 3, 10, 100, 9000])
def test_equal_to_a_full_sort(kind: str, columns: int, k: int) -> None:
    scores = case(kind, 9, columns)
    before = scores.copy()
    found = largest(scores, k)
    assert found.dtype == np.float32 and np.array_equal(found, -np.sort(-scores, axis=1)[:, :k])
    assert np.array_equal(scores, before)


@pytest.mark.parametrize("kind", ["distinct", "ties", "left out"])
@pytest.mark.parametrize("size", [1, 30, 999])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_blocks_do_not_matter(kind: str, size: int, k: int) -> None:
    scores, found = case(kind, 5, 2500), None
    for start in range(0, 2500, size):
        found = largest(scores[:, start : start + size], k, found)
    assert found is not None and np.array_equal(found, largest(scores, k))


def test_of_fewer_numbers_come_all() -> None:
    filled = largest(np.array([[1.0, 3.0]]), 5, np.full((1, 5), -np.inf))
    assert filled.tolist() == [[3.0, 1.0, -np.inf, -np.inf, -np.inf]]
    assert largest(np.array([[1.0, 3.0]]), 5).tolist() == [[3.0, 1.0]]
