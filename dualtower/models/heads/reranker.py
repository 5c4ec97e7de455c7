"""A cross-attention re-ranker: how well does *this* text describe *this* image?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import ConfigError
from dualtower.models.heads.attention import TwoWayLayer
from dualtower.models.heads.projection import HeadNorm
from dualtower.models.towers import (
    ImageTowerConfig,
    ProjectionHead,
    TextTowerConfig,
    create_image_tower,
    create_text_tower,
)
from dualtower.models.towers.base import pool_tokens
from dualtower.types import Features

__all__ = ["Reranker", "RerankerConfig", "TokenStates"]


@dataclass(frozen=True)
class RerankerConfig:
    """A cross-attention head. It is saved with the model."""

    layers: int = 2
    """Layers in which text tokens look at the image's and back."""
    width: int = 128
    """Width of the tokens inside."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.1
    """Dropout while training."""
    text: TextTowerConfig | None = None
    """A text tower of its own, with fresh weights and the model's vocabulary; None reads the model's tower."""
    image: ImageTowerConfig | None = None
    """An image tower of its own, with fresh weights; None reads the model's tower. Towers that have learned their
    training rows by heart leave a re-ranker nothing to correct there; a second look makes other mistakes."""
    towers: str = ""
    """Fingerprint of the towers that it was trained with; filled in by training."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reranker.{name} is {getattr(self, name)}; it must be at least 1")
        for side in ("text", "image"):
            tower = getattr(self, side)
            if tower is not None and tower.pretrained:
                raise ConfigError(
                    f"reranker.{side}.pretrained is {tower.pretrained!r}, but its own towers begin fresh; leave it out"
                )


class TokenStates(NamedTuple):
    """One side as the re-ranker takes it.

    Attributes:
        tokens: Tokens of its own width, ``[N, T, W]``.
        mask: Which of them are real, bool ``[N, T]``, or None where all are.
        embedding: Embedding of the whole text or image, of unit length, ``[N, W]``.
    """

    tokens: Tensor
    mask: Tensor | None
    embedding: Tensor

    def take(self, rows: Tensor) -> TokenStates:
        """The states of some rows, int64 ``[M]``, in that order."""
        return TokenStates(self.tokens[rows], None if self.mask is None else self.mask[rows], self.embedding[rows])


class Reranker(nn.Module):
    """Score pairs of a text and an image: how alike they are as a whole, and what their tokens say of each other.

    The score counts with a `weight` that begins as zero, so that an untrained re-ranker leaves every order as it is.
    Training chooses it on the validation split: on its own rows the towers are too good to be corrected.

    Args:
        config: Its size.
        max_length: Longest text in tokens.
        image_settings: Size of the images.
        text_width: Width of the features and of the tokens of the model's text tower.
        image_width: The same of its image tower.
        head_norm: How the features are normalized before they become embeddings.
    """

    weight: Tensor

    def __init__(
        self,
        config: RerankerConfig,
        *,
        max_length: int,
        image_settings: ImageSettings,
        text_width: tuple[int, int],
        image_width: tuple[int, int],
        head_norm: HeadNorm,
    ) -> None:
        super().__init__()
        width = config.width
        self.text_tower = self.image_tower = None
        if config.text is not None:
            self.text_tower = create_text_tower(config.text)
            text_width = self.text_tower.width, self.text_tower.token_width
        if config.image is not None:
            self.image_tower = create_image_tower(config.image, image_settings)
            image_width = self.image_tower.width, self.image_tower.token_width
        self.text_head, self.image_head = (
            ProjectionHead("linear", w, embed_dim=width, norm=head_norm) for w, _ in (text_width, image_width)
        )
        self.text_in, self.image_in = (
            nn.Sequential(nn.LayerNorm(w), nn.Linear(w, width)) for _, w in (text_width, image_width)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, width))  # bags of words know no order
        self.layers = nn.ModuleList(
            TwoWayLayer(width, heads=config.heads, dropout=config.dropout) for _ in range(config.layers)
        )
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.score = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.GELU(), last)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("weight", torch.zeros(()))

    def text_states(self, text: Features) -> TokenStates:
        """What the re-ranker needs of texts; computed once for any number of images."""
        tokens = self.text_in(text.tokens)
        return TokenStates(tokens + self.positions[: tokens.shape[1]], text.mask, _unit(self.text_head(text.pooled)))

    def image_states(self, image: Features) -> TokenStates:
        """What the re-ranker needs of images; computed once for any number of texts."""
        return TokenStates(self.image_in(image.tokens), None, _unit(self.image_head(image.pooled)))

    def forward(self, text: TokenStates, image: TokenStates) -> Tensor:
        """Score B pairs: ``[B]``; more is a better match. `weight` times this is to be added to the towers' logit."""
        words, patches = text.tokens, image.tokens
        for layer in self.layers:
            words, patches = layer(words, patches, text.mask)
        mask = text.mask if text.mask is not None else torch.ones_like(words[..., 0], dtype=torch.bool)
        described, seen = pool_tokens(words, mask, "mean"), patches.mean(1)
        detail: Tensor = self.score(torch.cat([described, seen, described * seen], dim=-1)).squeeze(-1)
        return self.logit_scale.exp() * (text.embedding * image.embedding).sum(-1) + detail

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


def _unit(embeddings: Tensor) -> Tensor:
    """Unit length, in float32 at least: autocast computes in less."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)
