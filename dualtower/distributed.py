"""What the ranks of one training exchange, with gradients that are right by construction.

With `all_gather_with_grad`, every rank gathers the same joined batch and computes the same loss, in full. A rank's own
rows then get the joined gradient without further communication, and DistributedDataParallel's mean over ranks is undone
by a factor of the world size on the embeddings only: the gradients of the towers, of the scale and of the bias are
those of one process on the joined batch. `all_gather_with_summed_grad` does the same for losses that each rank computes
of its own rows.

All functions are the identity where torch.distributed is not initialized, or has a single rank.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from dualtower import errors
from dualtower.errors import ConfigError, DualTowerError
from dualtower.sharding import process_group_device, rank, world_size

__all__ = [
    "agree_on_step",
    "all_gather_with_grad",
    "all_gather_with_summed_grad",
    "all_reduce_max",
    "broadcast_",
    "from_main",
    "rank",
    "with_averaged_gradients",
    "world_size",
]

_BYTES_AT_ONCE = 1 << 26  # which an accelerator must hold to exchange them
_EQUAL_SIZES = "the joined loss needs equal ones: drop the last batch, or use a sampler of equal length on all ranks"
_MET: set[tuple[int, Any]] = set()  # process group and shapes that its ranks have compared


def all_gather_with_grad(*values: Tensor) -> tuple[Tensor, ...]:
    """Join several tensors of all ranks, in rank order and in one exchange, embeddings with their gradient.

    The backward pass returns the gradient of this rank's own rows times the world size. That is right under
    two conditions: all ranks compute the same loss of the joined batch, and the gradients of the parameters
    are averaged over ranks afterwards, as DistributedDataParallel does. Integers and truth values have no gradient.

    Args:
        values: ``[B, ...]`` each, of any types; B and the shapes are equal on all ranks. The ranks compare shapes the
            first time that they meet them; that the batches stay equally long, `agree_on_step` asks in every step.

    Returns:
        ``[W * B, ...]`` for each.

    Raises:
        ConfigError: The shapes differ between ranks; raised on all of them.
    """
    if world_size() == 1:
        return values
    joined: tuple[Tensor, ...] = _Gather.apply(*values)
    return joined


def all_gather_with_summed_grad(values: Tensor) -> Tensor:
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


def all_reduce_max(first: float, second: float, device: torch.device | str) -> tuple[float, float]:
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


def agree_on_step(
    stopping: bool, seconds: float, rows: Sequence[int], device: torch.device | str
) -> tuple[bool, float]:
    """Decide about the next step together, in one exchange: whether somebody wants to stop, and what the time is.

    Args:
        stopping: Whether this rank was asked to stop.
        seconds: By this rank's clock; the largest counts.
        rows: Length of each batch of the step.
        device: Device of the process group's tensors.

    Raises:
        ConfigError: The batches are not equally long on all ranks; raised on all of them.
    """
    if world_size() == 1:
        return stopping, seconds
    values = torch.tensor([stopping, seconds, *rows, *(-n for n in rows)], dtype=torch.float64, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    stop, latest, *sizes = values.tolist()
    longest, shortest = sizes[: len(rows)], [-n for n in sizes[len(rows) :]]
    if longest != shortest:
        raise ConfigError(
            f"ranks hold batches of different sizes (from {min(shortest):.0f} to {max(longest):.0f} rows); "
            f"{_EQUAL_SIZES}"
        )
    return bool(stop), latest


def with_averaged_gradients(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in a wrapper that averages gradients over the ranks; in a single process, the module itself.

    Args:
        module: Its parameters that require a gradient now are those that are averaged. It must be in no other wrapper
            that is still in use.
        device: Where it is.
    """
    if world_size() == 1:
        return module
    gc.collect()  # the hooks of a wrapper that is no longer in use
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type != "cpu" else None,
        broadcast_buffers=False,  # training never reads them; before a validation, rank 0 hands out its own
    )


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
        raise _error_named(*json.loads(sent.numpy().tobytes()))
    return sent.numpy().tobytes()


def _error_named(name: str, message: str) -> DualTowerError:
    """An error of rank 0, on another rank."""
    kind = getattr(errors, name)
    return kind(message) if kind.__init__ is DualTowerError.__init__ else DualTowerError(message)


def _joined(*values: Tensor) -> tuple[Tensor, ...]:
    """Rows of all ranks, packed into bytes for one exchange."""
    _same_shapes(values)
    columns = [_as_bytes(value) for value in values]
    packed = torch.cat(columns, dim=1)
    parts = [torch.empty_like(packed) for _ in range(world_size())]
    dist.all_gather(parts, packed)
    joined = torch.cat(parts).split([column.shape[1] for column in columns], dim=1)
    return tuple(
        column.contiguous().view(value.dtype).reshape(len(packed) * world_size(), *value.shape[1:])
        for column, value in zip(joined, values, strict=True)
    )


def _as_bytes(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(len(value), value[0].numel()).view(torch.uint8)


def _same_shapes(values: Sequence[Tensor]) -> None:
    """Compare shapes before the first exchange of them: a collective of unequal sizes hangs, crashes or mixes up rows.

    Ranks whose shapes were always equal have met the same ones, so all of them compare, or none.
    """
    shapes = tuple((value.shape, value.dtype) for value in values)
    if (id(dist.group.WORLD), shapes) in _MET:
        return
    numbers = sum(value.numel() for value in values)
    mine = torch.tensor([len(values[0]), numbers], device=values[0].device)
    everybody = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everybody, mine)
    rows = [of_rank.tolist() for of_rank in everybody]
    if any(row != rows[0] for row in rows):
        raise ConfigError(
            f"ranks hold batches of different sizes ({', '.join(str(r[0]) for r in rows)} rows, "
            f"{', '.join(str(r[1]) for r in rows)} numbers); {_EQUAL_SIZES}"
        )
    _MET.add((id(dist.group.WORLD), shapes))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.rows = len(values[0])
        joined = _joined(*values)
        ctx.mark_non_differentiable(*(values for values in joined if not values.is_floating_point()))
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        own = slice(rank() * ctx.rows, (rank() + 1) * ctx.rows)
        needed = zip(upstream, ctx.needs_input_grad, strict=True)
        return tuple(gradient[own] * world_size() if learns else None for gradient, learns in needed)


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        return _joined(values)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        total = upstream.contiguous()
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]
