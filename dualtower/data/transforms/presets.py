"""Which augmentation each row gets, where a data card says so by an attribute: clothes are not turned like rings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualtower.data.transforms.augmentation import PRESETS, Augmentation, BatchRNG, augment
from dualtower.errors import ConfigError, UnknownName

__all__ = ["PresetRule", "augment_each"]

BY, DEFAULT = "by", "default"


@dataclass(frozen=True)
class PresetRule:
    """Presets by the values of an attribute.

    Attributes:
        by: The attribute.
        presets: Value -> name of a preset.
        default: Preset of all other rows.
    """

    by: str
    presets: Mapping[str, str]
    default: str

    @classmethod
    def of(cls, rule: Mapping[str, str]) -> PresetRule:
        """Read what a card says: ``{by: masterCategory, Apparel: apparel, default: product}``.

        Raises:
            ConfigError: It lacks `by` or `default`.
            UnknownName: There is no such preset.
        """
        for key in (BY, DEFAULT):
            if key not in rule:
                raise ConfigError(
                    f"augmentation {dict(rule)} lacks {key!r}; write {{by: ATTRIBUTE, VALUE: PRESET, default: PRESET}}"
                )
        presets = {value: preset for value, preset in rule.items() if value not in (BY, DEFAULT)}
        for preset in (*presets.values(), rule[DEFAULT]):
            if preset not in PRESETS:
                raise UnknownName("augmentation preset", preset, PRESETS)
        return cls(rule[BY], presets, rule[DEFAULT])

    @property
    def names(self) -> list[Augmentation]:
        """All presets that a row may get."""
        return [name for name in PRESETS if name in (*self.presets.values(), self.default)]

    def codes(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Place of each row's preset in `PRESETS`, int64 ``[B]``."""
        names = [self.presets.get(str(row.get(self.by)), self.default) for row in rows]
        return torch.tensor([PRESETS.index(name) for name in names], dtype=torch.int64)


def augment_each(pixels: Tensor, codes: Tensor, rng: BatchRNG, *, size: tuple[int, int], strength: float) -> Tensor:
    """Apply to each image the preset of its own; arguments as in `augment`.

    Args:
        pixels: ``[B, 3, H, W]``.
        codes: Places in `PRESETS`, int64 ``[B]``.
        rng: Source of randomness for this batch.
        size: Output height and width.
        strength: As a share of each preset's reach.
    """
    result = pixels.new_empty((len(pixels), 3, *size), dtype=torch.float32)
    for code in torch.unique(codes).tolist():
        rows = (codes == code).nonzero().squeeze(1)
        drawn = augment(pixels[rows], PRESETS[code], rng.of_rows(rows), size=size, strength=strength)
        result[rows] = drawn
    return result
