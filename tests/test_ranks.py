"""Exact ranks against hand-written matrices and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualtower.errors import ConfigError
from dualtower.evaluation import Relevance, both_ways, retrieval_ranks, self_positions, top_k


def from_scores(matrix: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose dot products are the given scores."""
    scores = np.array(matrix, np.float32)
    return scores, np.eye(scores.shape[1], dtype=np.float32)


def pair_scores(queries: np.ndarray, gallery: np.ndarray, similarity: str) -> np.ndarray:
    """The score of each pair by its definition, one at a time."""
    q, g = queries.astype(np.float64), gallery.astype(np.float64)
    if similarity == "euclidean":
        return np.float32([[-((a - b) ** 2).sum() / 2 for b in g] for a in q])
    return np.float32([[(a * b).sum() for b in g] for a in q])


def brute_force(scores: np.ndarray, relevance: Relevance, exclude: np.ndarray | None = None) -> np.ndarray:
    """(query, item, above, tied) of each relevant item, by loops."""
    rows = []
    for q, g in zip(relevance.queries, relevance.items, strict=True):
        others = [i for i in range(scores.shape[1]) if i != g and (exclude is None or i != exclude[q])]
        if exclude is not None and exclude[q] == g:
            continue
        above = sum(scores[q, i] > scores[q, g] for i in others)
        tied = sum(scores[q, i] == scores[q, g] for i in others)
        rows.append((q, g, above, tied))
    return np.array(rows)


def as_rows(ranks) -> np.ndarray:
    return np.stack([ranks.queries, ranks.items, ranks.above, ranks.tied], axis=1)


def random_relevance(random: np.random.Generator, queries: int, gallery: int, share: float) -> Relevance:
    q, g = np.nonzero(random.random((queries, gallery)) < share)
    return Relevance.from_pairs(q, g, random.integers(1, 4, len(q)), shape=(queries, gallery))


def test_hand_written_matrix():
    queries, gallery = from_scores([[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4]])
    relevance = Relevance.from_pairs([0, 0, 1, 2], [1, 3, 0, 0], shape=(3, 4))
    ranks = retrieval_ranks(queries, gallery, relevance, similarity="dot")
    assert ranks.above.tolist() == [1, 3, 0, 3]
    assert ranks.tied.tolist() == [1, 0, 3, 0]
    assert ranks.expected.tolist() == [2.5, 4, 2.5, 4]
    assert ranks.optimistic.tolist() == [2, 4, 1, 4]
    assert ranks.pessimistic.tolist() == [3, 4, 4, 4]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("share", [0.005, 0.03, 0.5])  # mostly one, several, and very many relevant items
def test_equals_brute_force_with_ties_and_many_relevant(similarity, share):
    random = np.random.default_rng(0)
    queries = random.integers(-1, 2, (40, 4)).astype(np.float32)  # small integers: lots of ties
    gallery = random.integers(-1, 2, (60, 4)).astype(np.float32)
    if similarity == "cosine":
        queries, gallery = np.sign(queries + 0.5) / 2, np.sign(gallery + 0.5) / 2
    relevance = random_relevance(random, 40, 60, share)
    scores = pair_scores(queries, gallery, similarity)
    forward, backward = both_ways(queries, gallery, relevance, similarity=similarity, block=(32, 1024))
    assert np.array_equal(as_rows(forward), brute_force(scores, relevance))
    assert np.array_equal(as_rows(backward), brute_force(scores.T, relevance.transpose()))
    alone = retrieval_ranks(queries, gallery, relevance, similarity=similarity)
    assert np.array_equal(as_rows(alone), as_rows(forward))


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_block_size_and_threads_do_not_change_the_result(similarity):
    random = np.random.default_rng(1)
    queries = random.normal(size=(300, 33)).astype(np.float32)
    gallery = np.concatenate([queries[:150] + 0.5, random.normal(size=(1900, 33)), queries[:150] + 0.5])
    gallery = (gallery * np.linspace(0.1, 3, len(gallery))[:, None] ** (similarity == "dot")).astype(np.float32)
    relevance = random_relevance(random, len(queries), len(gallery), 0.002)
    expected = both_ways(queries, gallery, relevance, similarity=similarity)
    for block, threads in [((20, 1024), 1), ((131, 2048), 3), ((5000, 1), 1)]:
        torch.set_num_threads(threads)
        got = both_ways(queries, gallery, relevance, similarity=similarity, block=block)
        assert torch.get_num_threads() == threads
        for a, b in zip(expected, got, strict=True):
            assert np.array_equal(as_rows(a), as_rows(b))
            assert np.array_equal(a.scores, b.scores)


def test_near_ties_are_decided_by_exact_scores():
    """Scores closer than the rounding of a float32 product: the fast product alone gets them wrong."""
    random = np.random.default_rng(2)
    base = random.normal(size=512)
    gallery = (base + 1e-7 * random.normal(size=(400, 512))).astype(np.float32)
    queries = (base + 0.1 * random.normal(size=(50, 512))).astype(np.float32)
    relevance = Relevance.from_pairs(range(50), range(50), shape=(50, 400))
    scores = pair_scores(queries, gallery, "dot")
    forward, backward = both_ways(queries, gallery, relevance, similarity="dot")
    assert np.array_equal(as_rows(forward), brute_force(scores, relevance))
    assert np.array_equal(as_rows(backward), brute_force(scores.T, relevance.transpose()))
    fast = queries @ gallery.T
    assert not np.array_equal((fast > np.diag(fast)[:, None]).sum(1), forward.above)


def test_an_item_is_never_outranked_by_its_own_copy():
    """Byte-identical gallery rows tie exactly, wherever in a block they stand."""
    random = np.random.default_rng(3)
    one = random.normal(size=(1, 511)).astype(np.float32)
    gallery = np.repeat(one, 1501, axis=0)
    queries = random.normal(size=(15, 511)).astype(np.float32)
    relevance = Relevance.from_pairs(range(15), range(0, 15 * 80, 80), shape=(15, 1501))
    for similarity in ("cosine", "dot", "euclidean"):
        ranks = retrieval_ranks(queries, gallery, relevance, similarity=similarity)
        assert not ranks.above.any()
        assert (ranks.tied == 1500).all()


def test_own_row_is_excluded():
    random = np.random.default_rng(4)
    vectors = random.integers(-2, 3, (40, 3)).astype(np.float32)
    ids = [f"row {i}" for i in range(40)]
    own = self_positions(ids[5:] + ["unknown"] * 5, ids)
    assert own.tolist() == [*range(5, 40), *[-1] * 5]
    queries = np.concatenate([vectors[5:], vectors[:5]])
    items = np.arange(40) // 4
    relevance = Relevance.from_products(np.concatenate([items[5:], items[:5]]), items)
    ranks = retrieval_ranks(queries, vectors, relevance, exclude=own, similarity="dot")
    expected = brute_force(pair_scores(queries, vectors, "dot"), relevance, own)
    assert np.array_equal(as_rows(ranks), expected)
    assert ranks.gallery_sizes.tolist() == [39] * 35 + [40] * 5
    assert ranks.counts.tolist() == [3] * 35 + [4] * 5


def test_cosine_ignores_lengths():
    random = np.random.default_rng(5)
    queries, gallery = random.normal(size=(20, 8)), random.normal(size=(30, 8))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    relevance = random_relevance(random, 20, 30, 0.1)
    lengths = random.uniform(0.1, 9, (30, 1))
    a, b = (retrieval_ranks(*pair, relevance) for pair in (unit, (torch.tensor(queries), gallery * lengths)))
    assert np.array_equal(as_rows(a), as_rows(b))


def test_no_queries_and_queries_without_relevant_items():
    gallery = np.eye(3, dtype=np.float32)
    empty = Relevance.from_pairs([], [], shape=(0, 3))
    assert len(retrieval_ranks(np.empty((0, 3)), gallery, empty)) == 0
    some = Relevance.from_pairs([1], [2], shape=(3, 3))
    assert retrieval_ranks(gallery, gallery, some).judged.tolist() == [1]


@pytest.mark.parametrize(
    ("queries", "gallery", "message"),
    [
        (np.full((2, 3), np.nan), np.ones((4, 3)), "queries: 2 of 2 embeddings are not finite, first row 0"),
        (np.ones((2, 3)), np.ones((4, 5)), "queries have 3 dimensions, the gallery has 5"),
        (np.ones((2, 3)), np.ones((5, 3)), "do not fit relevance of 2 queries over 4 items"),
        (np.ones(3), np.ones((4, 3)), r"must be embeddings \[N, D\]"),
    ],
)
def test_bad_embeddings(queries, gallery, message):
    relevance = Relevance.from_pairs([0], [0], shape=(2, 4))
    with pytest.raises(ConfigError, match=message):
        retrieval_ranks(queries, gallery, relevance)


def test_relevance_from_products_and_back():
    relevance = Relevance.from_products(["b", "x", "a"], ["a", "b", "c", "b"])
    assert relevance.counts.tolist() == [2, 0, 1]
    assert relevance.items.tolist() == [1, 3, 0]
    back = relevance.transpose()
    assert back.counts.tolist() == [1, 1, 0, 1]
    assert back.items.tolist() == [2, 0, 0]
    with pytest.raises(ConfigError, match="given twice"):
        Relevance.from_pairs([0, 0], [1, 1], shape=(1, 2))
    with pytest.raises(ConfigError, match="outside 1 queries x 2"):
        Relevance.from_pairs([0], [2], shape=(1, 2))


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("block", [(7, 16), (1024, 4096)])
def test_top_k_order(similarity, block):
    random = np.random.default_rng(6)
    queries = random.integers(-2, 3, (25, 3)).astype(np.float32)
    gallery = random.integers(-2, 3, (70, 3)).astype(np.float32)
    if similarity == "cosine":
        queries, gallery = np.sign(queries + 0.5), np.sign(gallery + 0.5)
    own = np.arange(25) - 1
    positions, best = top_k(queries, gallery, k=6, exclude=own, similarity=similarity, block=block)
    scores = pair_scores(queries, gallery, similarity)
    for query in range(25):
        allowed = [i for i in range(70) if i != own[query]]
        expected = sorted(allowed, key=lambda i: (-scores[query, i], i))[:6]
        assert positions[query].tolist() == expected
        if similarity != "cosine":
            assert best[query].tolist() == scores[query, expected].tolist()


def test_top_k_of_a_small_gallery():
    positions, scores = top_k(np.eye(2), np.eye(2)[:1], k=3)
    assert positions.tolist() == [[0, -1, -1], [0, -1, -1]]
    assert scores[:, 1:].tolist() == [[-np.inf] * 2] * 2
