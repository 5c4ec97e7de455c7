"""The largest numbers of each row, found without sorting the row: the core of everything that looks for the best."""

from __future__ import annotations

import numpy as np

__all__ = ["largest"]

_PARTIAL_SORT = 64
"""Up to one number in so many, torch keeps a heap, which is several times faster than a partition; beyond, it is slower
(``topk_impl_loop`` in ATen/native/TopKImpl.h, and measured: 10 and 100 of 2048, 10 of 100,000)."""


def largest(scores: np.ndarray, k: int, before: np.ndarray | None = None) -> np.ndarray:
    """Return the `k` largest numbers of each row, best first; equal ones count as often as they stand there.

    Args:
        scores: A block of the rows, float ``[Q, N]``; it stays as it is.
        k: How many, at least 1; all N where there are fewer.
        before: What was found in earlier blocks of the same rows, ``[Q, K]``; then the result is of all of them.

    Returns:
        ``[Q, min(k, N)]``, or ``[Q, min(k, K + N)]`` after earlier blocks.
    """
    import torch

    count = min(k, scores.shape[1])
    if count * _PARTIAL_SORT <= scores.shape[1]:
        found = torch.topk(torch.from_numpy(scores), count, dim=1).values.numpy()
    else:
        found = _descending(np.partition(scores, scores.shape[1] - count, axis=1)[:, scores.shape[1] - count :])
    return found if before is None else _descending(np.concatenate([before, found], axis=1))[:, :k]


def _descending(rows: np.ndarray) -> np.ndarray:
    return np.sort(rows, axis=1)[:, ::-1]
