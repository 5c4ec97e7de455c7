"""What every tower is, and how tokens become one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from dualtower.types import Features

__all__ = ["Features", "TokenPooling", "Tower", "pool_tokens", "token_embedding"]

TokenPooling = Literal["mean", "cls", "max"]


class Tower(nn.Module, ABC):
    """Base of all towers.

    Attributes:
        width: Of the pooled features.
        token_width: Of the tokens; equal to `width` but for a few image backbones.
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
        """Lay convolutions out in memory; to a tower without pictures it means nothing."""


def token_embedding(vocab_size: int, width: int) -> nn.Embedding:
    """Fresh token embeddings as small as BERT's, whose standard deviation is 0.02.

    A rare word then says next to nothing until it has been trained; with torch's own unit variance it would drown the
    words beside it.
    """
    embedding = nn.Embedding(vocab_size, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def pool_tokens(tokens: Tensor, mask: Tensor, kind: TokenPooling) -> Tensor:
    """Pool ``[B, T, W]`` over its real tokens to ``[B, W]``; what stands in the padding never counts.

    Args:
        tokens: ``[B, T, W]``.
        mask: bool ``[B, T]``, True for real tokens.
        kind: ``mean`` or ``max`` over the real tokens, or ``cls``, the first token.
    """
    if kind == "cls":
        return tokens[:, 0]
    real = mask.unsqueeze(-1)
    if kind == "max":
        return tokens.masked_fill(~real, -torch.inf).amax(1)
    # bf16 loses digits in a sum, so the sum is taken in float32 at least.
    total = tokens.masked_fill(~real, 0).sum(1, dtype=torch.promote_types(tokens.dtype, torch.float32))
    return (total / real.sum(1).clamp(min=1)).to(tokens.dtype)
