"""What every tower is, and how tokens become one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from dualtower.types import Features

__all__ = ["Features", "TokenPooling", "Tower", "end_places", "pool_tokens", "token_at", "token_embedding"]

TokenPooling = Literal["mean", "cls", "max", "last", "eos", "pooler"]


class Tower(nn.Module, ABC):
    """Base of all towers.

    Attributes:
        width: Width of the pooled features.
        token_width: Width of the tokens; equal to `width` but for a few image backbones.
        compiles_for_all_lengths: Whether torch.compile makes one program of a text tower for texts of all lengths.
    """

    width: int
    token_width: int
    compiles_for_all_lengths: bool = True

    @abstractmethod
    def layers_above(self, name: str) -> int:
        """Number of layers from a parameter of this tower to its output, its own included."""

    def for_inference(self) -> Tower:
        """A copy that computes the same faster on a CPU and learns no more; itself where nothing is faster."""
        return self

    def order_memory(self, *, channels_last: bool) -> None:
        """Lay convolutions out in memory; to a tower without images it means nothing."""


def token_embedding(vocab_size: int, width: int) -> nn.Embedding:
    """Fresh token embeddings as small as BERT's, whose standard deviation is 0.02.

    A rare word then says next to nothing until it has been trained; with torch's own unit variance it would drown the
    words beside it.
    """
    embedding = nn.Embedding(vocab_size, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def pool_tokens(tokens: Tensor, mask: Tensor, pooling: TokenPooling) -> Tensor:
    """Pool ``[B, T, W]`` over its real tokens to ``[B, W]``; what stands in the padding, on either side, never counts.

    Args:
        tokens: ``[B, T, W]``.
        mask: bool ``[B, T]``, True for real tokens.
        pooling: ``mean`` or ``max`` over the real tokens, or the first (``cls``) or ``last`` of them.

    Raises:
        ValueError: The rule needs more than tokens and mask.
    """
    if pooling == "cls":
        return token_at(tokens, mask.int().argmax(1))
    if pooling == "last":
        return token_at(tokens, _last_places(mask))
    if pooling not in ("mean", "max"):
        raise ValueError(f"{pooling!r} pooling needs more than tokens and mask")
    real = mask.unsqueeze(-1)
    if pooling == "max":
        return tokens.masked_fill(~real, -torch.inf).amax(1)
    # bf16 loses digits in a sum, so the sum is taken in float32 at least.
    total = tokens.masked_fill(~real, 0).sum(1, dtype=torch.promote_types(tokens.dtype, torch.float32))
    return (total / real.sum(1).clamp(min=1)).to(tokens.dtype)


def token_at(tokens: Tensor, places: Tensor) -> Tensor:
    """Take one token of each row: from ``[B, T, W]``, at places int64 ``[B]``, ``[B, W]``."""
    return tokens[torch.arange(len(tokens), device=tokens.device), places]


def end_places(ids: Tensor, mask: Tensor, end: int | None) -> Tensor:
    """Find the end-of-text token of each row, int64 ``[B]``; in a row without one, the last real token.

    Args:
        ids: int64 ``[B, T]``.
        mask: bool ``[B, T]``; the padding may consist of end-of-text tokens too, as CLIP's does.
        end: Id of the token; None for the highest of each row.
    """
    if end is None:
        return ids.masked_fill(~mask, -1).argmax(1)
    ends = (ids == end) & mask
    return torch.where(ends.any(1), ends.int().argmax(1), _last_places(mask))


def _last_places(mask: Tensor) -> Tensor:
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
