"""One vector per product from its title, its image and its attributes, any of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.data.transforms.attributes import AttributesConfig
from dualtower.errors import ConfigError, UnknownName
from dualtower.models.heads.attention import TwoWayLayer
from dualtower.models.towers.attributes import AttributeTower
from dualtower.models.towers.base import pool_tokens
from dualtower.types import AttributeValues, Embeddings, Features

__all__ = ["FusionConfig", "FusionMethod", "ProductFusion"]

FusionMethod = Literal["concat", "cross"]


@dataclass(frozen=True)
class FusionConfig:
    """How title, image and attributes become one vector. It is saved with the model."""

    method: FusionMethod = "concat"
    """`concat` puts one vector of each side by side, through an MLP; with `cross`, tokens look at each other first."""
    width: int = 256
    """Width of the hidden layers."""
    layers: int = 2
    """Cross-attention layers of `cross`."""
    heads: int = 4
    """Attention heads of `cross`."""
    dropout: float = 0.1
    """Dropout while training."""
    modality_dropout: float = 0.3
    """How often the title, and as often the image, is hidden while training; never both."""
    attributes: AttributesConfig | None = None
    """Attributes as a third input; None is none."""
    tasks: Mapping[str, list[str]] = field(default_factory=dict)
    """Attribute -> its classes, for heads that predict it; filled in from the training split."""

    def __post_init__(self) -> None:
        if self.method not in ("concat", "cross"):
            raise UnknownName("fusion", self.method, ("concat", "cross"))
        for name in ("dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"fusion.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        read = set(self.attributes.names) if self.attributes else set()
        if both := read & set(self.tasks):
            raise ConfigError(
                f"{', '.join(sorted(both))} would be both read and predicted; take it out of fusion.attributes.names "
                "or out of task.heads"
            )


class ProductFusion(nn.Module):
    """Fuse what the towers made of a product.

    The result is the mean of the embeddings that the product has, plus a learned correction which begins as zero: an
    untrained fusion is the plain average of both towers.

    Args:
        config: Which fusion.
        text: Widths of the text tower's pooled features and tokens.
        image: Widths of the image tower's.
        embed_dim: Width of the towers' embeddings, and of the result.
    """

    def __init__(self, config: FusionConfig, *, text: tuple[int, int], image: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, cross = config.width, config.method == "cross"
        self.text_in, self.image_in = (
            nn.Sequential(nn.LayerNorm(w), nn.Linear(w, width)) for w in (text[cross], image[cross])
        )
        self.no_text, self.no_image = (nn.Parameter(0.02 * torch.randn(width)) for _ in range(2))
        self.attributes = AttributeTower(config.attributes) if config.attributes else None
        self.attributes_in = nn.Linear(self.attributes.width, width) if self.attributes else None
        count = config.layers if cross else 0
        self.layers = nn.ModuleList(
            TwoWayLayer(width, heads=config.heads, dropout=config.dropout) for _ in range(count)
        )
        joined = (3 if self.attributes else 2) * width
        self.hidden = nn.Sequential(
            nn.LayerNorm(joined), nn.Linear(joined, 2 * width), nn.GELU(), nn.Dropout(config.dropout)
        )
        self.out = nn.Linear(2 * width, embed_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.tasks = nn.ModuleDict({name: nn.Linear(2 * width, len(known)) for name, known in config.tasks.items()})

    def forward(
        self, embeddings: Embeddings, present: Tensor | None, attributes: AttributeValues | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Fuse a batch.

        Args:
            embeddings: Embeddings of the towers, with features; a side may be absent.
            present: bool ``[B, 2]``, which rows have an image and which a text; None where all have what is given.
            attributes: Attributes of the products, where the fusion reads them.

        Returns:
            ``[B, D]`` of unit length, and the logits of each task, ``[B, classes]``.
        """
        has_image, has_text = self._present(embeddings, present)
        text = self._side(embeddings.text_features, self.text_in, self.no_text, has_text)
        image = self._side(embeddings.image_features, self.image_in, self.no_image, has_image)
        for layer in self.layers:
            words, patches = layer(text.tokens, image.tokens, text.mask)
            text, image = text._replace(tokens=words), image._replace(tokens=patches)
        parts = [_pooled(text), _pooled(image)]
        if self.attributes is not None and self.attributes_in is not None:
            if attributes is None:
                raise ConfigError(f"this fusion reads the attributes {', '.join(self.attributes.config.names)}")
            parts.append(self.attributes_in(self.attributes(attributes)).mean(1))
        hidden = self.hidden(torch.cat(parts, dim=-1))
        fused = self._mean(embeddings, has_image, has_text) + self.out(hidden)
        fused = fused.to(torch.promote_types(fused.dtype, torch.float32))
        return F.normalize(fused, dim=-1), {name: head(hidden) for name, head in self.tasks.items()}

    def _present(self, embeddings: Embeddings, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each row has, bool ``[B]`` each, after hiding some of it while training."""
        known = next(e for e in (embeddings.image, embeddings.text) if e is not None)
        rows = torch.ones(len(known), dtype=torch.bool, device=known.device)
        has = [rows if e is not None else ~rows for e in (embeddings.image, embeddings.text)]
        if present is not None:
            has = [has[0] & present[:, 0], has[1] & present[:, 1]]
        if self.training and self.config.modality_dropout:
            chance = torch.rand(len(known), device=known.device)
            share = self.config.modality_dropout / 2
            both = has[0] & has[1]
            has = [has[0] & ~(both & (chance < share)), has[1] & ~(both & (chance > 1 - share))]
        return has[0], has[1]

    def _side(self, features: Features | None, project: nn.Module, missing: Tensor, has: Tensor) -> Features:
        """Tokens of the fusion's width; a row without this side has one token of its own kind instead."""
        if features is None:
            tokens = missing.expand(len(has), 1, -1)
            return Features(tokens[:, 0], tokens, None)
        given = features.tokens if self.layers else features.pooled.unsqueeze(1)
        tokens = torch.where(has[:, None, None], project(given), missing)
        return Features(tokens[:, 0], tokens, features.mask if self.layers else None)

    def _mean(self, embeddings: Embeddings, has_image: Tensor, has_text: Tensor) -> Tensor:
        """Mean of the embeddings that a row has."""
        total: Tensor | float = 0.0
        for side, has in ((embeddings.image, has_image), (embeddings.text, has_text)):
            if side is not None:
                total = total + side * has.unsqueeze(1)
        count = (has_image.int() + has_text.int()).clamp(min=1).unsqueeze(1)
        assert isinstance(total, Tensor)
        return total / count


def _pooled(side: Features) -> Tensor:
    if side.mask is None:
        return side.tokens.mean(1)
    return pool_tokens(side.tokens, side.mask, "mean")
