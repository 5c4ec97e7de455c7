"""Relevance by an equal label: the same tie groups and figures as from all pairs, in the memory of the rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from dualtower.errors import ConfigError
from dualtower.evaluation import Relevance, label_metrics, per_query, retrieval_ranks
from dualtower.evaluation.label_metrics import _tie_groups, other_rows
from dualtower.evaluation.scores import Scores
from dualtower.evaluation.tie_groups import TieGroups


def from_pairs(vectors: np.ndarray, labels: np.ndarray):
    relevance = Relevance.from_products(labels, labels)
    return retrieval_ranks(vectors, vectors, relevance, exclude=np.arange(len(labels)), similarity="cosine")


def case(kind: str, rows: int = 240) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    labels = np.where(random.random(rows) < 0.1, -1 - np.arange(rows), random.zipf(1.6, rows) % 9)
    if kind == "ties":
        return (random.integers(0, 2, (rows, 3)) + 0.25).astype(np.float32), labels
    if kind == "all equal":
        return np.ones((rows, 4), np.float32), labels
    return random.normal(size=(rows, 8)).astype(np.float32), labels


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
@pytest.mark.parametrize("ks", [(1, 3), (1, 5, 10), (20,), (500,)])
def test_equal_to_all_pairs(kind: str, ks: tuple[int, ...]) -> None:
    vectors, labels = case(kind)
    ranks = from_pairs(vectors, labels)
    metrics = label_metrics(vectors, labels, ks=ks, numbers=2000)  # several blocks
    assert np.array_equal(np.flatnonzero(other_rows(labels)), ranks.judged)
    wanted = per_query(ranks, ks=ks)
    relevant = ranks.counts[ranks.judged]
    wanted |= {f"precision@{k}": wanted[f"recall@{k}"] * relevant / k for k in ks}
    assert list(metrics) == [*(f"precision@{k}" for k in ks), *(f"recall@{k}" for k in ks), "ndcg@10"]
    for name, values in metrics.items():
        np.testing.assert_allclose(values, wanted[name], rtol=1e-13, atol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
def test_the_tie_groups_are_the_same_whole_numbers(kind: str) -> None:
    vectors, labels = case(kind)
    ranks, depth = from_pairs(vectors, labels), 10
    found = _tie_groups(Scores(vectors, vectors), labels, ranks.judged, depth=depth, numbers=1000)
    wanted = TieGroups.of(ranks)
    for name in ("query", "above", "size", "relevant", "before"):
        whole, above = getattr(found, name), found.above
        np.testing.assert_array_equal(whole[above < depth], getattr(wanted, name)[wanted.above < depth], err_msg=name)
    np.testing.assert_array_equal(np.bincount(found.query, found.relevant), np.bincount(wanted.query, wanted.relevant))


def test_memory_grows_with_rows_and_not_with_pairs() -> None:
    """3,000 rows of one label are nine million relevant pairs, which as such took a gigabyte."""
    vectors = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    tracemalloc.start()
    label_metrics(vectors, np.zeros(3000, np.int64), ks=(10,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_no_two_rows_of_one_label() -> None:
    metrics = label_metrics(np.eye(4, dtype=np.float32), np.arange(4), ks=(1,))
    assert all(len(values) == 0 for values in metrics.values())
    with pytest.raises(ConfigError, match="cut-offs"):
        label_metrics(np.eye(4, dtype=np.float32), np.arange(4), ks=(0,))
    with pytest.raises(ConfigError, match="3 labels were given for 4 rows"):
        label_metrics(np.eye(4, dtype=np.float32), np.arange(3), ks=(1,))
