"""Attention of one sequence over another, and of two sequences over each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.errors import ConfigError

__all__ = ["CrossAttention", "TwoWayLayer"]


class CrossAttention(nn.Module):
    """Multi-head attention (https://arxiv.org/abs/1706.03762) of one sequence over another, then a small MLP.

    Both parts normalize what comes in and add to what was there (pre-norm).

    Args:
        width: Width of both sequences.
        heads: Attention heads; they share the width.
        dropout: On what each part adds, while training.

    Raises:
        ConfigError: The heads do not divide the width.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"width {width} cannot be divided among {heads} attention heads")
        self.heads = heads
        self.norm, self.norm_others, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let ``[B, T, W]`` look at ``[B, S, W]``.

        Args:
            states: What looks, and is returned changed.
            others: What is looked at.
            mask: bool ``[B, S]``, True for real tokens; None where all are.
        """
        query, key, value = self._projected(states, others)
        allowed = None if mask is None else mask[:, None, None]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        states = states + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return states + self.dropout(self.mlp(self.norm_mlp(states)))

    def weights(self, states: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each of T tokens looks at each of S, mean over the heads: ``[B, T, S]``, rows add up to 1."""
        query, key, _ = self._projected(states, others)
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        return logits.softmax(-1).mean(1)

    def _projected(self, states: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``[B, heads, T or S, W / heads]``."""
        query = self.query(self.norm(states))
        key, value = self.key_value(self.norm_others(others)).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return query, key, value


class TwoWayLayer(nn.Module):
    """Text looks at the image and, at the same time, the image at the text (co-attention).

    As in ViLBERT (https://arxiv.org/abs/1908.02265). Arguments are those of `CrossAttention`.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.text, self.image = (CrossAttention(width, heads=heads, dropout=dropout) for _ in range(2))

    def forward(self, text: Tensor, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return text ``[B, T, W]`` and image ``[B, S, W]`` after a look at each other.

        Args:
            text: ``[B, T, W]``.
            image: ``[B, S, W]``; all of its tokens are real.
            mask: bool ``[B, T]`` of the text, or None.
        """
        return self.text(text, image), self.image(image, text, mask)
