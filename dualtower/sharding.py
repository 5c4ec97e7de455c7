"""Work that several processes do together: each does its shard of the tasks, and all of them hold the whole result.

Whoever has independent tasks (batches to embed, blocks of scores to count) writes::

    result = np.zeros(...)
    for task in shard(tasks):
        result[task] = ...
    combine(result)

Outside of `sharded`, and in a single process, that is the plain loop over all tasks. The tasks are the same on any
number of processes and each is computed by one of them, so the result is the same as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch  # 250 MB that a look at a catalog does without

__all__ = ["combine", "is_sharded", "process_group_device", "rank", "shard", "sharded", "world_size"]

T = TypeVar("T")

_AT_ONCE = 1 << 24  # numbers per exchange, which an accelerator must hold for it: 64 MB in float32

_sharded: ContextVar[bool] = ContextVar("sharded", default=False)


@contextmanager
def sharded() -> Iterator[None]:
    """Share the work inside out among the processes of torch.distributed.

    All of them must enter it and do the same inside: the same calls with the same data and equal models. What a call
    returns is then the same in all of them.
    """
    token = _sharded.set(True)
    try:
        yield
    finally:
        _sharded.reset(token)


def is_sharded() -> bool:
    """Whether several processes share the work that is going on."""
    return _sharded.get() and world_size() > 1


def shard(tasks: Sequence[T]) -> Sequence[T]:
    """The tasks of this process: every W-th of W processes, so that neighbors of like cost are dealt out evenly."""
    return tasks[rank() :: world_size()] if is_sharded() else tasks


def combine(*arrays: np.ndarray) -> None:
    """Add up the arrays of all processes, in place.

    Args:
        arrays: C-contiguous numbers of one shape on all processes. Where each entry is zero on all processes but one,
            as with results of sharded tasks, the sum is exact.
    """
    if not is_sharded():
        return
    import torch
    import torch.distributed as dist

    device = process_group_device()
    for array in arrays:
        if not array.size:
            continue
        for part in torch.from_numpy(array).view(-1).split(_AT_ONCE):
            exchanged = part.to(device)
            dist.all_reduce(exchanged)
            part.copy_(exchanged)


def world_size() -> int:
    """Number of processes that work together; 1 without torch.distributed."""
    group = _group()
    return group.get_world_size() if group else 1


def rank() -> int:
    """Number of this process among them; 0 without torch.distributed."""
    group = _group()
    return group.get_rank() if group else 0


def _group() -> Any:
    """torch.distributed where it has made a group of processes (who has not imported it has none); None elsewhere."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


def process_group_device() -> torch.device:
    """Where tensors must be for the processes to exchange them: NCCL knows accelerators only."""
    import torch
    import torch.distributed as dist

    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or "gloo" in dist.get_backend() or dist.get_backend() == "mpi":
        return torch.device("cpu")
    return accelerator
