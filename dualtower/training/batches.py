"""The batches of a training: what makes them, and what they go through before the model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from dualtower.data.batches import PREFETCHED, Collator, PixelCache
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import fit_classes
from dualtower.data.transforms.augmentation import BatchRNG, augment, drop_tokens, erase
from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import ConfigError
from dualtower.objectives.base import Objective, Views
from dualtower.training.config import RunConfig, TrainConfig
from dualtower.types import Batch

__all__ = ["augmented", "image_size", "training_collator"]

ONE_VIEW = Views()


def training_collator(config: RunConfig, objective: Objective, items: ItemDataset) -> Collator:
    """The model's collator with a cache of images, where they fit, and the classes that the run learns.

    Args:
        config: The run.
        objective: What it wants of a row decides whether images and texts are read.
        items: Training split.
    """
    collator, views = objective.model.collator(), objective.views
    classes = {**collator.classes, **fit_classes(config.task.labels, items.columns.attributes)}
    return replace(
        collator,
        tokenizer=collator.tokenizer if views.texts else None,
        captions=max(1, views.texts),
        image_settings=collator.image_settings if views.images else None,
        cache=_pixel_cache(config, items) if views.images else None,
        classes=classes,
    )


def augmented(
    batch: Batch, config: TrainConfig, tokenizer: Any, rng: BatchRNG, *, size: tuple[int, int], views: Views = ONE_VIEW
) -> Batch:
    """A batch as one visit of training sees it.

    Args:
        batch: On the device.
        config: What is changed, and how far.
        tokenizer: Tokenizer of the batch's texts.
        rng: Random numbers, a row of them for each row of the batch.
        size: Height and width that the images get.
        views: What the objective wants; a loader may read more than that.
    """
    images = [] if batch.pixels is None else _views(batch.pixels, config, rng, size, count=views.images)
    read = [] if batch.tokens is None else [batch.tokens, *batch.more_tokens][: views.texts]
    texts = [_with_hidden(tokens, config.token_dropout, tokenizer, rng) for tokens in read]
    return replace(
        batch,
        pixels=images[0] if images else None,
        more_views=tuple(images[1:]),
        tokens=texts[0] if texts else None,
        more_tokens=tuple(texts[1:]),
    )


def image_size(settings: ImageSettings, scales: tuple[float, ...], progress: float) -> tuple[int, int]:
    """Height and width of images at a point of the budget.

    Args:
        settings: Settings of the model, whose size the images have in the end.
        scales: Scales in equal shares of the budget (`TrainConfig.image_size_schedule`); none is full size throughout.
        progress: Share of the budget that is used up.
    """
    if not scales:
        return settings.height, settings.width
    scale = scales[min(int(progress * len(scales)), len(scales) - 1)]
    height, width = (max(8, 4 * round(side * scale / 4)) for side in (settings.height, settings.width))
    return height, width


def _views(pixels: Tensor, config: TrainConfig, rng: BatchRNG, size: tuple[int, int], *, count: int) -> list[Tensor]:
    views = []
    for _ in range(count):
        view = augment(pixels, config.augmentation, rng, size=size, strength=config.augmentation_strength)
        views.append(erase(view, rng, share=config.random_erasing_prob) if config.random_erasing_prob else view)
    return views


def _pixel_cache(config: RunConfig, items: ItemDataset) -> PixelCache | None:
    """A cache of the split's images, where they fit."""
    settings, data = config.model.image_settings, config.data
    if PixelCache.megabytes(items, settings) > data.cache_mb:
        return None
    in_transit = data.workers * (PREFETCHED + 1) * config.train.batch_size * 3 * settings.height * settings.width
    return PixelCache.if_there_is_room(items, settings, in_transit=in_transit)


def _with_hidden(tokens: Mapping[str, Tensor], share: float, tokenizer: Any, rng: BatchRNG) -> Mapping[str, Tensor]:
    """The tokens with a share of the words hidden."""
    if not share:
        return tokens
    hidden = tokenizer.unk_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    if hidden == tokenizer.eos_token_id:  # CLIP's: every hidden word would end the text
        raise ConfigError(
            "train.token_dropout has no token to hide words behind; this tokenizer has but one for "
            "unknown words and ends of texts. Type --train.token-dropout 0"
        )
    return drop_tokens(tokens, rng, share=share, unknown=hidden, kept=set(tokenizer.all_special_ids))
