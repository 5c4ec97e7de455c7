"""A cross-attention re-ranker: how well does *this* text describe *this* picture?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualtower.errors import ConfigError
from dualtower.fusion.attention import TwoWayLayer
from dualtower.towers.features import pool_tokens
from dualtower.types import Features

__all__ = ["Reranker", "RerankerConfig", "TokenStates"]


@dataclass(frozen=True)
class RerankerConfig:
    """A cross-attention head. It is saved with the model."""

    layers: int = 2
    """Layers in which text tokens look at the picture's and back."""
    width: int = 128
    """Width of the tokens inside."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.1
    """Dropout while training."""
    towers: str = ""
    """Fingerprint of the towers that it was trained with; filled in by training."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reranker.{name} is {getattr(self, name)}; it must be at least 1")


class TokenStates(NamedTuple):
    """One side as the re-ranker takes it: tokens of its own width, and which of them are real.

    Attributes:
        tokens: ``[N, T, W]``.
        mask: bool ``[N, T]``, or None where all tokens are real.
    """

    tokens: Tensor
    mask: Tensor | None

    def take(self, rows: Tensor) -> TokenStates:
        """The states of some rows, int64 ``[M]``, in that order."""
        return TokenStates(self.tokens[rows], None if self.mask is None else self.mask[rows])


class Reranker(nn.Module):
    """Score pairs of a text and a picture from their tokens.

    The score is a correction of the towers' own logit and begins as zero, so that an untrained re-ranker leaves every
    order as it is.

    Args:
        config: Its size.
        text_width: Of the text tower's tokens.
        image_width: Of the image tower's tokens.
        max_length: Longest text in tokens.
    """

    def __init__(self, config: RerankerConfig, *, text_width: int, image_width: int, max_length: int) -> None:
        super().__init__()
        width = config.width
        self.text_in, self.image_in = (
            nn.Sequential(nn.LayerNorm(w), nn.Linear(w, width)) for w in (text_width, image_width)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, width))  # bags of words know no order
        self.layers = nn.ModuleList(
            TwoWayLayer(width, heads=config.heads, dropout=config.dropout) for _ in range(config.layers)
        )
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.score = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.GELU(), last)

    def text_states(self, text: Features) -> TokenStates:
        """What the re-ranker needs of texts; computed once for any number of pictures."""
        tokens = self.text_in(text.tokens)
        return TokenStates(tokens + self.positions[: tokens.shape[1]], text.mask)

    def image_states(self, image: Features) -> TokenStates:
        """What the re-ranker needs of pictures; computed once for any number of texts."""
        return TokenStates(self.image_in(image.tokens), None)

    def forward(self, text: TokenStates, image: TokenStates) -> Tensor:
        """Score B pairs: ``[B]``, to be added to ``scale * similarity``; more is a better match."""
        words, patches = text.tokens, image.tokens
        for layer in self.layers:
            words, patches = layer(words, patches, text.mask)
        mask = text.mask if text.mask is not None else torch.ones_like(words[..., 0], dtype=torch.bool)
        described, seen = pool_tokens(words, mask, "mean"), patches.mean(1)
        scores: Tensor = self.score(torch.cat([described, seen, described * seen], dim=-1)).squeeze(-1)
        return scores

    @torch.no_grad()
    def attention(self, text: TokenStates, image: TokenStates) -> tuple[Tensor, Tensor]:
        """Which patches the words looked at and which words the patches looked at, mean over layers and heads.

        Returns:
            ``[B, T, S]`` and ``[B, S, T]``; rows add up to 1.
        """
        words, patches = text.tokens, image.tokens
        to_image, to_text = [], []
        for layer in self.layers:
            assert isinstance(layer, TwoWayLayer)
            to_image.append(layer.text.weights(words, patches))
            to_text.append(layer.image.weights(patches, words, text.mask))
            words, patches = layer(words, patches, text.mask)
        return torch.stack(to_image).mean(0), torch.stack(to_text).mean(0)
