"""The best hits of each query, in an order that does not depend on how they were computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dualtower.errors import ConfigError
from dualtower.evaluation.counting import BLOCK
from dualtower.evaluation.scores import Scores
from dualtower.losses.similarity import Similarity
from dualtower.sharding import combine, shard
from dualtower.topk import largest

__all__ = ["top_k"]


def top_k(
    queries: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    *,
    k: int,
    exclude: np.ndarray | None = None,
    similarity: Similarity = "cosine",
    block: tuple[int, int] = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` best gallery items of each query; items of equal score stand in the order of the gallery.

    Args:
        queries: Embeddings ``[Q, D]``.
        gallery: Embeddings ``[G, D]``.
        k: Hits per query.
        exclude: Gallery position to leave out for each query, int ``[Q]``, -1 for none.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        block: Queries and gallery items compared at a time.

    Returns:
        Gallery positions, int64 ``[Q, k]``, and scores, float32 ``[Q, k]``. Where the gallery has fewer than `k`
        items, positions are -1 and scores -inf.
    """
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    scores = Scores(queries, gallery, similarity)
    positions = np.zeros((scores.shape[0], k), np.int64)
    best = np.zeros((scores.shape[0], k), np.float32)
    for first in shard(range(0, scores.shape[0], block[0])):
        rows = slice(first, min(first + block[0], scores.shape[0]))
        positions[rows], best[rows] = -1, -np.inf
        for start in range(0, scores.shape[1], block[1]):
            columns = slice(start, min(start + block[1], scores.shape[1]))
            values = torch.empty(rows.stop - rows.start, columns.stop - columns.start)
            scores.block(rows, columns, values)
            _merge(scores, values.numpy(), rows, columns, exclude, positions[rows], best[rows])
    combine(positions, best)
    return positions, best


def _merge(
    scores: Scores,
    block: np.ndarray,
    rows: slice,
    columns: slice,
    exclude: np.ndarray | None,
    positions: np.ndarray,
    best: np.ndarray,
) -> None:
    """Let one block of fast scores contend with the best hits so far (written in place)."""
    k = positions.shape[1]
    if exclude is not None:
        items = exclude[rows] - columns.start
        inside = np.flatnonzero((exclude[rows] >= 0) & (items >= 0) & (items < block.shape[1]))
        block[inside, items[inside]] = -np.inf
    # Fast scores stray by at most the slack, so whatever is that far below the k-th best is not among the best.
    limit = best[:, -1]
    if block.shape[1] > k:
        limit = np.maximum(limit, largest(block, k)[:, -1] - scores.row_slack[rows])
    line, item = np.nonzero((block >= (limit - scores.row_slack[rows])[:, None]) & (block > -np.inf))
    kept_line, kept = np.nonzero(positions >= 0)
    line, item = np.concatenate([kept_line, line]), np.concatenate([positions[kept_line, kept], item + columns.start])
    score = np.concatenate([best[kept_line, kept], scores.exact(line[len(kept) :] + rows.start, item[len(kept) :])])
    order = np.lexsort((item, -score, line))
    line, item, score = line[order], item[order], score[order]
    place = np.arange(len(line)) - np.searchsorted(line, line)
    chosen = place < k
    positions[line[chosen], place[chosen]] = item[chosen]
    best[line[chosen], place[chosen]] = score[chosen]
