"""Contrast of queries with keys that get no gradient: those of a queue, or those of the same batch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["contrast_with_keys", "contrast_with_queue"]


def contrast_with_queue(
    query: Tensor,
    key: Tensor,
    *,
    queue: Tensor,
    scale: Tensor | float,
    shown: Tensor,
    queue_shown: Tensor,
) -> Tensor:
    """Find the key of each row among earlier keys, as MoCo does (He et al. 2020, https://arxiv.org/abs/1911.05722).

    With ``z_ij = scale * <q_i, k_j>`` over the row's own key and the keys of the queue that are no kin of it::

        loss = mean over i of the mean over its positives p of  -log( exp z_ip / sum_j exp z_ij )

    where the own key is a positive, and so are keys in the queue that belong together with the row. With no others,
    that is equation 1 of the paper.

    Args:
        query: ``[N, D]`` of unit length, the joined batch; half precision is computed in float32.
        key: Another view of each row by the momentum network, ``[N, D]`` of unit length; it gets no gradient.
        queue: Earlier keys, ``[Q, D]`` of unit length.
        scale: One over the temperature.
        shown: What each row shows, int64 ``[N, 2]``: its product, and what it attracts; -1 is nothing that is known.
        queue_shown: The same of the keys in the queue, ``[Q, 2]``.

    Returns:
        A scalar.
    """
    query, key, queue = _promoted(query, key, queue)
    own = (query * key).sum(1, keepdim=True)
    logits = scale * torch.cat([own, query @ queue.T], dim=1)
    positive, kin = _related(shown, queue_shown)
    first = torch.ones_like(own, dtype=torch.bool)
    return _found(logits, torch.cat([first, positive], 1), torch.cat([~first, kin], 1))


def contrast_with_keys(query: Tensor, key: Tensor, *, scale: Tensor | float, shown: Tensor) -> Tensor:
    """Find the key of each row among the keys of its batch, as MoCo v3 does (https://arxiv.org/abs/2104.02057).

    The formula is that of `contrast_with_queue`, over the N keys of the batch.

    Args:
        query: ``[N, D]`` of unit length, the joined batch; half precision is computed in float32.
        key: Another view of each row by the momentum network, ``[N, D]`` of unit length; it gets no gradient.
        scale: One over the temperature.
        shown: What each row shows, int64 ``[N, 2]``.

    Returns:
        A scalar.
    """
    query, key = _promoted(query, key)
    positive, kin = _related(shown, shown)
    own = torch.eye(len(query), dtype=torch.bool, device=query.device)
    return _found(scale * query @ key.T, positive | own, kin & ~own)


def _promoted(query: Tensor, *keys: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    return [query.to(dtype), *(key.detach().to(dtype) for key in keys)]


def _related(shown: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows attract each other, and which others are of one product: bool ``[N, M]`` each."""
    product, positive = ((shown[:, i].unsqueeze(1) == others[:, i]) & (others[:, i] >= 0) for i in range(2))
    return positive, product & ~positive


def _found(logits: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    attraction = (logits * positive).sum(1) / positive.sum(1)
    return (logits.masked_fill(ignored, -torch.inf).logsumexp(1) - attraction).mean()
