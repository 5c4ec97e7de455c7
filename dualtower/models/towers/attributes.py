"""Attributes of a product as a third input beside title and image."""

from __future__ import annotations

import math
from typing import cast

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

    @torch.no_grad()
    def start_from(self, other: AttributeTower) -> list[str]:
        """Take over what another tower has learned of the attributes and values that both read.

        A value that the other one never saw, and an attribute that it does not read, keep their fresh weights. Numbers
        may be normalized by another mean and deviation there: the affine maps are converted, so that the same quantity
        becomes the same token.

        Returns:
            The attributes that begin anew.

        Raises:
            ConfigError: The towers have no attribute in common, or differ in width or in what is a number.
        """
        mine, theirs = self.config, other.config
        if self.width != other.width:
            raise ConfigError(
                f"an attribute tower of width {self.width} cannot start from one of width {other.width}; "
                f"set attributes.width to {other.width}"
            )
        for name in mine.names:
            kinds = [("a number" if name in c.numbers else "a category") for c in (mine, theirs) if name in c.names]
            if len(set(kinds)) > 1:
                raise ConfigError(
                    f"attribute {name!r} is {kinds[0]} here and {kinds[1]} in attributes.pretrained; "
                    "let columns.numeric of both data cards agree, or leave the attribute out"
                )
        anew = [name for name in mine.names if name not in theirs.names]
        if len(anew) == len(mine.names):
            raise ConfigError(
                f"attributes.pretrained reads {', '.join(theirs.names)}, and none of {', '.join(anew)}; "
                "leave it out, or read attributes that it knows"
            )
        for name, table in zip(mine.categories, self.tables, strict=True):
            if name in theirs.categories:
                learned = cast(nn.Embedding, other.tables[list(theirs.categories).index(name)]).weight
                place = {value: 1 + i for i, value in enumerate(theirs.categories[name])}
                weight = cast(nn.Embedding, table).weight
                weight[UNKNOWN] = learned[UNKNOWN]
                for row, value in enumerate(mine.categories[name], start=1):
                    if value in place:
                        weight[row] = learned[place[value]]
        for row, (name, (mean, deviation)) in enumerate(mine.numbers.items()):
            if name in theirs.numbers:
                known = list(theirs.numbers).index(name)
                their_mean, their_deviation = theirs.numbers[name]
                self.scales[row] = other.scales[known] * (deviation / their_deviation)
                self.shifts[row] = other.shifts[known] + other.scales[known] * ((mean - their_mean) / their_deviation)
                self.unknown[row] = other.unknown[known]
        self.mix.load_state_dict(other.mix.state_dict())
        return anew

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
