"""An autoencoder of attribute vectors: one code per product, from which each of its attributes can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.data.transforms.attributes import AttributesConfig
from dualtower.errors import ConfigError
from dualtower.models.towers.attributes import AttributeTower
from dualtower.types import AttributeValues

__all__ = ["AttributeEncoder", "AttributeEncoderConfig", "Reconstruction"]


@dataclass(frozen=True)
class AttributeEncoderConfig:
    """How the attributes of a product become one code, and are told from it again. It is saved with the model."""

    attributes: AttributesConfig = field(default_factory=AttributesConfig)
    """Which attributes; a share of them is hidden while training, so that each is learned from the others."""
    hidden: int = 256
    """Width of the hidden layers of encoder and decoder."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ConfigError(f"attribute_encoder.hidden is {self.hidden}; it must be at least 1")


class Reconstruction(NamedTuple):
    """What an attribute encoder makes of a batch.

    Attributes:
        codes: ``[B, D]`` of unit length.
        logits: Of each category, over its known values, ``[B, classes]``.
        numbers: Quantities, normalized, ``[B, Q]``.
    """

    codes: Tensor
    logits: tuple[Tensor, ...]
    numbers: Tensor


class AttributeEncoder(nn.Module):
    """Encode the attributes of a product into one code, and decode every attribute from it.

    The tokens of the attributes (`AttributeTower`), side by side, go through one hidden layer into the code; the
    decoder has one hidden layer too, and a linear head for each attribute. With attributes hidden on the way in, as its
    tower does while training, it is a denoising autoencoder (P. Vincent et al., "Extracting and composing robust
    features with denoising autoencoders", ICML 2008): what a product lacks is told from what it has.

    Args:
        config: With what training knew of the attributes, see `fit_attributes`.
        embed_dim: Width of the code.

    Raises:
        ConfigError: It names no attribute.
    """

    def __init__(self, config: AttributeEncoderConfig, embed_dim: int) -> None:
        super().__init__()
        self.config, attributes = config, config.attributes
        self.tower = AttributeTower(attributes)
        if len(attributes.names) != len(attributes.categories) + len(attributes.numbers):
            raise ConfigError(
                "attribute_encoder.attributes does not know the values of its names yet; "
                "fill them in with fit_attributes(config, train.attributes)"
            )
        joined = self.tower.width * (len(attributes.categories) + len(attributes.numbers))
        self.encoder = nn.Sequential(
            nn.LayerNorm(joined), nn.Linear(joined, config.hidden), nn.GELU(), nn.Linear(config.hidden, embed_dim)
        )
        self.decoder = nn.Sequential(nn.Linear(embed_dim, config.hidden), nn.GELU())
        classes = map(len, attributes.categories.values())
        self.categories = nn.ModuleList(nn.Linear(config.hidden, count) for count in classes)
        self.numbers = nn.Linear(config.hidden, len(attributes.numbers)) if attributes.numbers else None

    def encode(self, values: AttributeValues) -> Tensor:
        """Return the codes, at least float32 ``[B, D]`` of unit length."""
        codes = self.encoder(self.tower(values).flatten(1))
        return F.normalize(codes.to(torch.promote_types(codes.dtype, torch.float32)), dim=-1)

    def forward(self, values: AttributeValues) -> Reconstruction:
        """Encode and decode."""
        codes = self.encode(values)
        # Dimensions of a unit vector are as small as 1 / sqrt(D), from which fresh weights make next to nothing.
        hidden = self.decoder(codes * math.sqrt(codes.shape[1]))
        numbers = hidden.new_zeros(len(codes), 0) if self.numbers is None else self.numbers(hidden)
        return Reconstruction(codes, tuple(head(hidden) for head in self.categories), numbers)
