"""Retrieval among rows that are alike when their labels are equal, without ever listing the pairs of alike rows.

A label of n rows makes n (n - 1) relevant pairs, so that a few frequent labels of a catalog of 44,000 rows make tens
of millions. What is cut off at K needs the best K hits of each row only, together with whatever ties with the last of
them, and the number of rows of each label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dualtower.errors import ConfigError
from dualtower.evaluation.metrics import CUT_OFF
from dualtower.evaluation.scores import Scores
from dualtower.evaluation.tie_groups import TieGroups, prefix_sums
from dualtower.losses.similarity import Similarity
from dualtower.sharding import combine, shard
from dualtower.topk import largest

__all__ = ["label_metrics", "other_rows"]

_NUMBERS = 1 << 23  # scores held at a time: 32 MB


def label_metrics(
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int],
    similarity: Similarity = "cosine",
    numbers: int = _NUMBERS,
) -> dict[str, np.ndarray]:
    """Search all rows with each row; relevant are the other rows of its label, and its own is left out.

    The figures are those of `per_query` on the pairs, under the expected rule for ties.

    Args:
        vectors: Embeddings ``[N, D]``.
        labels: int ``[N]``.
        ks: Cut-offs of precision and recall.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        numbers: Scores held at a time; it has no influence on the result.

    Returns:
        Metric (``precision@K``, ``recall@K``, ``ndcg@10``) -> float64 ``[Q]`` over the Q rows that have a relevant one
        (`other_rows`), in their order.

    Raises:
        ConfigError: A cut-off is below 1, or shapes do not fit.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"cut-offs are {tuple(ks)}; give one or more, each at least 1")
    if len(labels) != len(vectors):
        raise ConfigError(f"{len(labels)} labels were given for {len(vectors)} rows")
    scores = Scores(vectors, vectors, similarity)
    relevant = other_rows(labels)
    judged = np.flatnonzero(relevant)
    relevant = relevant[judged]
    depth = max(*ks, CUT_OFF)
    groups = _tie_groups(scores, labels, judged, depth=depth, numbers=numbers)
    recall = {k: groups.mean_per_query(groups.share_within(k) * groups.relevant) for k in ks}
    ideal = prefix_sums(1 / np.log2(np.arange(2, CUT_OFF + 2)))[np.minimum(relevant, CUT_OFF)]
    metrics = {f"precision@{k}": recall[k] * relevant / k for k in ks}
    metrics |= {f"recall@{k}": recall[k] for k in ks}
    return metrics | {f"ndcg@{CUT_OFF}": groups.ndcg(ideal, CUT_OFF)}


def other_rows(labels: np.ndarray) -> np.ndarray:
    """How many other rows have the label of each row."""
    _, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return counts[number.reshape(-1)] - 1


def _tie_groups(scores: Scores, labels: np.ndarray, rows: np.ndarray, *, depth: int, numbers: int) -> TieGroups:
    """The groups that begin within the first `depth` places, and for each row one with its relevant rest, far below."""
    found = np.zeros((len(rows), depth + 1, 3), np.int32)  # above, size, relevant; no row has more groups
    step = max(1, numbers // max(1, len(labels)))
    for start in shard(range(0, len(rows), step)):
        block = slice(start, start + step)
        query, *groups = _best_groups(scores, labels, rows[block], depth)
        place = np.arange(len(query)) - np.searchsorted(query, query)
        found[block][query, place] = np.stack(groups, axis=1)
    combine(found)
    rest = other_rows(labels)[rows] - found[:, :, 2].sum(axis=1)
    found[:, depth] = np.stack([np.full(len(rows), len(labels)), rest, rest], axis=1)
    query, place = np.nonzero(found[:, :, 2])
    above, size, relevant = found[query, place].T.astype(np.int64)
    gain = relevant.astype(np.float64)
    return TieGroups.sorted(query=query, above=above, size=size, relevant=relevant, gain=gain, queries=len(rows))


def _best_groups(
    scores: Scores, labels: np.ndarray, rows: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the groups of equal score within `depth` that hold relevant rows, for a block of rows.

    Returns:
        Position in `rows`, items above, items in the group, and relevant ones among them: int64 ``[M]`` each.
    """
    fast = torch.empty(len(rows), len(labels))
    scores.block(rows, slice(None), fast)
    fast[torch.arange(len(rows)), torch.from_numpy(rows)] = -torch.inf
    values = fast.numpy()
    # Fast scores stray by at most the slack, so whatever is twice that below the last of the best cannot tie with it.
    last = largest(values, min(depth, len(labels) - 1))[:, -1]
    limit = np.nextafter(last - 2 * scores.row_slack[rows], np.float32(-np.inf))
    line, item = np.nonzero((values >= limit[:, None]) & (values > -np.inf))
    exact = scores.exact(rows[line], item)
    order = np.lexsort((-exact, line))
    line, item, exact = line[order], item[order], exact[order]
    first = np.flatnonzero(np.concatenate([[True], (np.diff(line) != 0) | (np.diff(exact) != 0)])[: len(line)])
    query = line[first]
    above = first - np.searchsorted(line, np.arange(len(rows)))[query]
    size = np.diff(np.append(first, len(line)))
    same = (labels[item] == labels[rows[line]]).astype(np.int64)
    relevant = np.add.reduceat(same, first) if len(first) else np.empty(0, np.int64)
    kept = (above < depth) & (relevant > 0)
    return query[kept], above[kept], size[kept], relevant[kept]
