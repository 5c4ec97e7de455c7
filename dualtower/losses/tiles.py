"""Losses over all N x N pairs that never hold more than one tile of them.

The forward pass shows each tile of logits to an `Objective` once, for both directions together. The backward
pass computes each tile again, asks the objective for the gradient with respect to its logits, and adds that
to the gradients of the tile's rows and columns. Four matrix products of N x N x D in place of three, and
memory for a few tiles and the gradients, where the plain way keeps several N x N matrices. (Recomputing tiles
instead of storing them is FlashAttention's idea, Dao et al. 2022; "Breaking the Memory Barrier", Cheng et al.
2024, applies it to contrastive losses.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dualtower.errors import ConfigError
from dualtower.losses.similarity import Similarity, accumulate_gradients_, similarities

__all__ = ["Objective", "tile_size", "tiled_loss"]

TILED_FROM = 4096  # rows; below, a matrix of logits takes under 64 MB and the plain way is about as fast
TILE = 1024  # rows and columns; large enough for a matrix product at full speed, small enough for the caches


class Objective(Protocol):
    """What a tiled loss asks of a loss. One object serves one batch."""

    def see(self, logits: Tensor, rows: slice, columns: slice) -> None:
        """Take in one tile of logits ``[R, C]``; it may be overwritten."""

    def value(self) -> Tensor:
        """The loss, a scalar, once every tile has been seen."""

    def gradient(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        """Gradient of the loss with respect to one tile of logits ``[R, C]``; the tile may be overwritten."""


def tile_size(tile: int | None, rows: int) -> int:
    """Side of the tiles for a batch of so many rows, or 0 for the plain way.

    Args:
        tile: 0 never tiles, a number always does, None does in large batches.
        rows: Rows of the joined batch.

    Raises:
        ConfigError: The side is negative.
    """
    if tile is None:
        return TILE if rows >= TILED_FROM else 0
    if tile < 0:
        raise ConfigError(f"a tile of {tile} rows; give a size such as {TILE}, 0 for none, or None to choose")
    return tile


def tiled_loss(
    objective: Objective,
    image: Tensor,
    *,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    similarity: Similarity,
    tile: int,
) -> Tensor:
    """Evaluate an objective tile by tile, with gradients of image, text, scale and bias.

    Args:
        objective: The loss of this batch.
        image: ``[N, D]``, float32 or float64.
        text: ``[N, D]``, of the same type.
        scale: Scalar.
        bias: Scalar, or None where the logits have none.
        similarity: Which similarity; the logits are ``scale * similarity + bias``.
        tile: Side of a tile.

    Returns:
        A scalar; it can be differentiated once.
    """
    loss: Tensor = _TiledLoss.apply(image, text, scale, bias, objective, similarity, tile)
    return loss


def _blocks(length: int, size: int) -> Iterator[tuple[slice, slice]]:
    starts = range(0, length, size)
    for row in starts:
        for column in starts:
            yield slice(row, row + size), slice(column, column + size)


def _logits(tile: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    logits = tile * scale
    return logits if bias is None else logits.add_(bias)


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        objective: Objective,
        similarity: Similarity,
        tile: int,
    ) -> Tensor:
        ctx.save_for_backward(image, text, scale, bias)
        ctx.objective, ctx.similarity, ctx.tile = objective, similarity, tile
        for rows, columns in _blocks(len(image), tile):
            objective.see(_logits(similarities(image[rows], text[columns], similarity), scale, bias), rows, columns)
        return objective.value()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, bias = ctx.saved_tensors
        grad_image, grad_text = (
            torch.zeros_like(x) if needed else None
            for x, needed in zip((image, text), ctx.needs_input_grad, strict=False)
        )
        # The two scalars are sums over N x N numbers of either sign: summed up in float64.
        grad_scale = torch.zeros((), dtype=torch.float64, device=image.device)
        grad_bias = torch.zeros_like(grad_scale)
        for rows, columns in _blocks(len(image), ctx.tile):
            tile = similarities(image[rows], text[columns], ctx.similarity)
            grad = ctx.objective.gradient(_logits(tile, scale, bias), rows, columns)
            grad_scale += torch.dot(grad.flatten(), tile.flatten())
            if bias is not None:
                grad_bias += grad.sum()
            accumulate_gradients_(
                None if grad_image is None else grad_image[rows],
                None if grad_text is None else grad_text[columns],
                grad.mul_(scale),
                tile,
                image[rows],
                text[columns],
                ctx.similarity,
            )
        for total in (grad_image, grad_text, grad_scale, grad_bias):
            if total is not None:
                total *= upstream
        to_bias = None if bias is None else grad_bias.to(bias.dtype)
        return grad_image, grad_text, grad_scale.to(scale.dtype), to_bias, None, None, None
