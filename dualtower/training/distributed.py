"""What the ranks of one training exchange, with gradients that are right by construction.

With `gather`, every rank gathers the same joined batch and computes the same loss, in full. A rank's own rows then
get the joined gradient without further communication, and DistributedDataParallel's mean over ranks is undone by a
factor of the world size on the embeddings only: the gradients of the towers, of the scale and of the bias are
those of one process on the joined batch. `share` does the same for losses that each rank computes of its own rows.

All functions are the identity where torch.distributed is not initialised, or has a single rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from dualtower import errors
from dualtower.errors import ConfigError, DualTowerError
from dualtower.sharding import process_group_device, rank, world_size

__all__ = ["agree", "broadcast_", "from_main", "gather", "gather_codes", "rank", "share", "world_size"]

_BYTES_AT_ONCE = 1 << 26  # which an accelerator must hold to exchange them


def gather(embeddings: Tensor) -> Tensor:
    """Join the embeddings of all ranks, in rank order, with gradient.

    The backward pass returns the gradient of this rank's own rows times the world size. That is right under
    two conditions: all ranks compute the same loss of the joined batch, and the gradients of the parameters
    are averaged over ranks afterwards, as DistributedDataParallel does.

    Args:
        embeddings: ``[B, D]``, B equal on all ranks.

    Returns:
        ``[W * B, D]``.

    Raises:
        ConfigError: The shapes differ between ranks; raised on all of them.
    """
    if world_size() == 1:
        return embeddings
    joined: Tensor = _Gather.apply(embeddings)
    return joined


def share(values: Tensor) -> Tensor:
    """Join rows of all ranks, in rank order, where every rank computes a loss of its own from them, with gradient.

    The backward pass adds up what all ranks' losses say about this rank's rows. With a mean over the rank's own rows
    as the loss, and the mean over ranks that DistributedDataParallel takes, gradients are those of one process.

    Args:
        values: ``[B, ...]``, of one shape on all ranks.

    Returns:
        ``[W * B, ...]``.

    Raises:
        ConfigError: The shapes differ between ranks; raised on all of them.
    """
    if world_size() == 1:
        return values
    joined: Tensor = _Share.apply(values)
    return joined


def gather_codes(codes: Tensor) -> Tensor:
    """Join the product codes of all ranks, in rank order.

    Args:
        codes: int64 ``[B]``, B equal on all ranks.

    Returns:
        int64 ``[W * B]``.

    Raises:
        ConfigError: The lengths differ between ranks; raised on all of them.
    """
    return codes if world_size() == 1 else _joined(codes)


def agree(first: float, second: float, device: torch.device | str) -> tuple[float, float]:
    """Return the largest value of each over all ranks, so that all ranks decide alike.

    Args:
        first: This rank's value.
        second: Another value, unrelated; one exchange serves both.
        device: Device of the process group's tensors.
    """
    if world_size() == 1:
        return first, second
    values = torch.tensor([first, second], dtype=torch.float64, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    largest = values.tolist()
    return largest[0], largest[1]


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give the tensors of all ranks the values of rank 0, in place, wherever they lie."""
    if world_size() > 1:
        device = process_group_device()
        for tensor in tensors:
            sent = tensor.detach().to(device).contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


def from_main(read: Callable[[], bytes]) -> bytes:
    """Return on all ranks what `read` returns on rank 0, which alone calls it: others may have no such file.

    An error of dualtower that it raises is raised on all ranks.
    """
    if world_size() == 1:
        return read()
    content, failed = b"", None
    if rank() == 0:
        try:
            content = read()
        except DualTowerError as error:
            failed, content = error, json.dumps([type(error).__name__, str(error)]).encode()
    header = torch.tensor([len(content), failed is not None])
    broadcast_([header])
    size, is_error = header.tolist()
    sent = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(size, dtype=torch.uint8)
    broadcast_(sent.split(_BYTES_AT_ONCE) if size else ())
    if failed is not None:
        raise failed
    if is_error:
        raise _told(*json.loads(sent.numpy().tobytes()))
    return sent.numpy().tobytes()


def _told(name: str, message: str) -> DualTowerError:
    """An error of rank 0, on another rank."""
    kind = getattr(errors, name)
    return kind(message) if kind.__init__ is DualTowerError.__init__ else DualTowerError(message)


def _joined(values: Tensor) -> Tensor:
    _same_shape(values)
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _same_shape(values: Tensor) -> None:
    """Compare shapes before the exchange: a collective of unequal sizes hangs, crashes or mixes up rows."""
    mine = torch.tensor([len(values), values.numel()], device=values.device)
    shapes = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(shapes, mine)
    rows = [shape.tolist() for shape in shapes]
    if any(row != rows[0] for row in rows):
        raise ConfigError(
            f"ranks hold batches of different sizes ({', '.join(str(r[0]) for r in rows)} rows, "
            f"{', '.join(str(r[1]) for r in rows)} numbers); the joined loss needs equal ones: "
            "drop the last batch, or use a sampler of equal length on all ranks"
        )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor) -> Tensor:
        ctx.rows = len(embeddings)
        return _joined(embeddings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return upstream[start : start + ctx.rows] * world_size()


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        return _joined(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        total = upstream.contiguous()
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]
