"""Losses: pure functions of the joined batch, which know neither model nor rank.

All take ``(image [N, D], text [N, D], *, scale, bias, products)`` and their own options, and return a scalar.
In all of them two rows of one product are positives of each other, never negatives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol

from torch import Tensor

from dualtower.errors import ConfigError, UnknownLoss
from dualtower.losses.hinge import pairwise_hinge
from dualtower.losses.infonce import info_nce
from dualtower.losses.keys import contrast_with_keys, contrast_with_queue
from dualtower.losses.negative_cosine import negative_cosine
from dualtower.losses.positives import Positives
from dualtower.losses.reconstruction import masked_patch_loss, reconstruction_loss, structural_similarity
from dualtower.losses.siglip import siglip
from dualtower.losses.similarity import Similarity, similarities
from dualtower.losses.supervised import nt_xent, supervised_contrastive
from dualtower.losses.triplet import Mining, triplet

__all__ = [
    "LOSSES",
    "Loss",
    "LossConfig",
    "build_loss",
    "contrast_with_keys",
    "contrast_with_queue",
    "info_nce",
    "masked_patch_loss",
    "negative_cosine",
    "nt_xent",
    "pairwise_hinge",
    "reconstruction_loss",
    "siglip",
    "similarities",
    "structural_similarity",
    "supervised_contrastive",
    "triplet",
]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "infonce": info_nce,
    "siglip": siglip,
    "triplet": triplet,
    "hinge": pairwise_hinge,
}


class Loss(Protocol):
    """A loss with its options settled."""

    def __call__(
        self, image: Tensor, text: Tensor, *, scale: Tensor, bias: Tensor, product_codes: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class LossConfig:
    """Which loss, and its options. An option that the loss does not have must keep its default."""

    name: str = "infonce"
    """Name of the loss: infonce, siglip, triplet or hinge."""
    positives: Positives = "product"
    """What other rows of the same product are. product: positives; ignore: neither; pair: negatives (CLIP)."""
    label_smoothing: float = 0.0
    """Share of infonce's targets that is spread evenly over the batch."""
    margin: float = 0.2
    """How much more similar than a negative a positive must be, for triplet and hinge."""
    mining: Mining = "semi-hard"
    """Triplets of the batch that count, for triplet."""
    tile: int | None = None
    """Side of the tiles of logits of infonce and siglip; 0 holds all N x N at once; None chooses by the batch."""

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise UnknownLoss("loss", self.name, LOSSES)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing is {self.label_smoothing}; it is a share from 0 to below 1")
        if not self.margin > 0:
            raise ConfigError(f"loss.margin is {self.margin}; it must be above 0")
        known = inspect.signature(LOSSES[self.name]).parameters
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            if option.name not in known and value != option.default:
                own = ", ".join(f.name for f in fields(self)[1:] if f.name in known)
                raise ConfigError(
                    f"loss.{option.name} is {value!r}, but {self.name!r} has no such option; it has: {own}. "
                    f"Leave loss.{option.name} at {option.default!r}"
                )


def build_loss(config: LossConfig, *, similarity: Similarity = "cosine") -> Loss:
    """Settle a loss's options.

    Args:
        config: Which loss and how.
        similarity: The model's similarity.

    Returns:
        ``loss(image, text, *, scale, bias, products) -> scalar``.
    """
    function = LOSSES[config.name]
    known = inspect.signature(function).parameters
    options = {f.name: getattr(config, f.name) for f in fields(config)[1:] if f.name in known}
    return partial(function, similarity=similarity, **options)
