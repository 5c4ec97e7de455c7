"""The batches of a training: what makes them, and what they go through before the model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from dualtower.data.attributes import fit_classes
from dualtower.data.augment import Draw, augment, drop_tokens, erase
from dualtower.data.batches import PREFETCHED, Collator, PixelCache
from dualtower.data.images import ImageSettings
from dualtower.data.products import Products
from dualtower.errors import ConfigError
from dualtower.model import DualTower
from dualtower.training.config import RunConfig, TrainConfig
from dualtower.types import Batch

__all__ = ["augmented", "picture_size", "training_collator"]


def training_collator(config: RunConfig, model: DualTower, products: Products) -> Collator:
    """The model's collator with a cache of pictures, where they fit, and the classes that the run learns.

    Args:
        config: The run.
        model: What is trained.
        products: Training split.
    """
    settings, data = config.model.image_settings, config.data
    in_transit = data.workers * (PREFETCHED + 1) * config.train.batch_size * 3 * settings.height * settings.width
    fits = PixelCache.megabytes(products, settings) <= data.cache_mb
    cache = PixelCache.if_there_is_room(products, settings, in_transit=in_transit) if fits else None
    collator = model.collator()
    classes = {**collator.classes, **fit_classes(config.task.labels, products.attributes)}
    return replace(collator, cache=cache, classes=classes)


def augmented(batch: Batch, config: TrainConfig, tokenizer: Any, draw: Draw, *, size: tuple[int, int]) -> Batch:
    """A batch as one visit of training sees it.

    Args:
        batch: With pictures, on the device.
        config: What is changed, and how far.
        tokenizer: Of the batch's texts.
        draw: Random numbers, a row of them for each row of the batch.
        size: Height and width that the pictures get.
    """
    assert batch.pixels is not None
    pixels = augment(batch.pixels, config.augmentation, draw, size=size, strength=config.augmentation_strength)
    if config.erasing:
        pixels = erase(pixels, draw, share=config.erasing)
    return replace(batch, pixels=pixels, tokens=_with_hidden(batch.tokens, config.token_dropout, tokenizer, draw))


def picture_size(settings: ImageSettings, scales: tuple[float, ...], progress: float) -> tuple[int, int]:
    """Height and width of pictures at a point of the budget.

    Args:
        settings: Of the model, whose size the pictures have in the end.
        scales: Of equal shares of the budget (`TrainConfig.progressive`); none is full size throughout.
        progress: Share of the budget that is used up.
    """
    if not scales:
        return settings.height, settings.width
    scale = scales[min(int(progress * len(scales)), len(scales) - 1)]
    height, width = (max(8, 4 * round(side * scale / 4)) for side in (settings.height, settings.width))
    return height, width


def _with_hidden(
    tokens: Mapping[str, Tensor] | None, share: float, tokenizer: Any, draw: Draw
) -> Mapping[str, Tensor] | None:
    """The tokens with a share of the words hidden."""
    if not share or tokens is None:
        return tokens
    hidden = tokenizer.unk_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    if hidden == tokenizer.eos_token_id:  # CLIP's: every hidden word would end the text
        raise ConfigError(
            "train.token_dropout has no token to hide words behind; this tokenizer has but one for "
            "unknown words and ends of texts. Type --train.token-dropout 0"
        )
    return drop_tokens(tokens, draw, share=share, unknown=hidden, kept=set(tokenizer.all_special_ids))
