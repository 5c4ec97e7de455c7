"""Attributes of a product as a third input beside title and image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dualtower.data.transforms.attributes import UNKNOWN, AttributesConfig
from dualtower.errors import ConfigError
from dualtower.models.towers.base import token_embedding
from dualtower.types import AttributeValues

__all__ = ["AttributeTower"]


class AttributeTower(nn.Module):
    """Embed each attribute into one token: a table for categories, an affine map for normalized numbers.

    A category that training never saw, and any missing value, is a token of its own kind ("unknown").

    Args:
        config: With what training knew, see `fit_attributes`.

    Raises:
        ConfigError: It names no attribute.
    """

    def __init__(self, config: AttributesConfig) -> None:
        super().__init__()
        if not config.names:
            raise ConfigError("attributes.names is empty; name attributes of the data card")
        self.config, self.width = config, config.width
        self.tables = nn.ModuleList(
            token_embedding(len(known) + 1, config.width) for known in config.categories.values()
        )
        self.scales = nn.Parameter(0.02 * torch.randn(len(config.numbers), config.width))
        self.shifts = nn.Parameter(0.02 * torch.randn(len(config.numbers), config.width))
        self.unknown = nn.Parameter(0.02 * torch.randn(len(config.numbers), config.width))
        self.mix = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.GELU())

    def forward(self, values: AttributeValues) -> Tensor:
        """Embed to ``[B, A, W]``: one token per attribute, categories first."""
        codes, numbers = values.codes, values.numbers
        if self.training and self.config.dropout:
            codes = codes.masked_fill(torch.rand(codes.shape, device=codes.device) < self.config.dropout, UNKNOWN)
            hidden = torch.rand(numbers.shape, device=numbers.device) < self.config.dropout
            numbers = numbers.masked_fill(hidden, math.nan)
        tokens = [table(codes[:, i : i + 1]) for i, table in enumerate(self.tables)]
        known = ~numbers.isnan()
        measured = numbers.nan_to_num().unsqueeze(-1) * self.scales + self.shifts
        stacked = torch.cat([*tokens, torch.where(known.unsqueeze(-1), measured, self.unknown)], dim=1)
        mixed: Tensor = stacked + self.mix(stacked)
        return mixed
