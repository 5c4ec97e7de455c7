"""The batches of a training: what makes them, and what they go through before the model sees them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dualtower.data.batches import PREFETCHED, Collator, PixelCache
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import fit_classes
from dualtower.data.transforms.augmentation import BatchRNG, augment, drop_tokens, erase, smallest_crop
from dualtower.data.transforms.images import ImageSettings
from dualtower.data.transforms.presets import PresetRule, augment_each
from dualtower.errors import ConfigError
from dualtower.objectives.base import Objective, Views
from dualtower.training.config import RunConfig, TrainConfig
from dualtower.types import Batch

__all__ = ["augmented", "image_size", "source_settings", "training_collator"]

ONE_VIEW = Views()
LOOKED_AT = 64  # images whose stored size is looked at
WORTH_IT = 1.25  # times larger that images must be read for crops to gain by it


def training_collator(config: RunConfig, objective: Objective, items: ItemDataset) -> Collator:
    """The model's collator with a cache of images, where they fit, and the classes that the run learns.

    Args:
        config: The run.
        objective: What it wants of a row decides whether images and texts are read.
        items: Training split.
    """
    collator, views = objective.model.collator(), objective.views
    settings = source_settings(config, items)
    attract = (*config.task.labels, *([config.ssl.label] if config.ssl.label else []))
    classes = {**collator.classes, **fit_classes(attract, items.columns.attributes)}
    return replace(
        collator,
        tokenizer=collator.tokenizer if views.texts else None,
        captions=max(1, views.texts),
        image_settings=settings if views.images else None,
        cache=_pixel_cache(config, settings, items) if views.images else None,
        classes=classes,
        preset_rule=PresetRule.of(config.train.augmentation_rule) if config.train.augmentation == "card" else None,
    )


def augmented(
    batch: Batch,
    config: TrainConfig,
    tokenizer: Any,
    rng: BatchRNG,
    *,
    size: tuple[int, int],
    views: Views = ONE_VIEW,
    progress: float = 0.0,
) -> Batch:
    """A batch as one visit of training sees it.

    Args:
        batch: On the device.
        config: What is changed, and how far.
        tokenizer: Tokenizer of the batch's texts.
        rng: Random numbers, a row of them for each row of the batch.
        size: Height and width that the images get.
        views: What the objective wants; a loader may read more than that.
        progress: Share of the budget that is used up.
    """
    strength = augmentation_strength(config, progress)
    images = [] if batch.pixels is None else _views(batch, config, rng, size, views.images, strength)
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


def augmentation_strength(config: TrainConfig, progress: float) -> float:
    """How strong the augmentation is at a point of the budget."""
    first, last = config.augmentation_strength, config.final_augmentation_strength
    return first if last is None else first + (last - first) * progress


def _views(
    batch: Batch, config: TrainConfig, rng: BatchRNG, size: tuple[int, int], count: int, strength: float
) -> list[Tensor]:
    """Augmented views of what was read, in turn."""
    assert batch.pixels is not None
    sources, views = [batch.pixels, *batch.more_views], []
    for number in range(count):
        pixels = sources[number % len(sources)]
        if config.augmentation == "card":
            assert batch.presets is not None
            view = augment_each(pixels, batch.presets, rng, size=size, strength=strength)
        else:
            view = augment(pixels, config.augmentation, rng, size=size, strength=strength)
        views.append(erase(view, rng, share=config.random_erasing_prob) if config.random_erasing_prob else view)
    return views


def source_settings(config: RunConfig, items: ItemDataset) -> ImageSettings:
    """The size at which images are read: the model's, or larger where crops are cut out of them and they have more.

    A crop of a fifth of an image that was read at the model's size would have a fifth of its pixels, drawn out.

    Args:
        config: The run.
        items: Training split, of whose images some are looked at.
    """
    settings, train = config.model.image_settings, config.train
    presets = PresetRule.of(train.augmentation_rule).names if train.augmentation == "card" else [train.augmentation]
    strongest = max(augmentation_strength(train, progress) for progress in (0.0, 1.0))
    smallest = min(smallest_crop(name, strongest) for name in presets)
    if smallest == 1:
        return settings
    sizes = [size for row in range(min(LOOKED_AT, len(items))) if (size := _stored_size(items.images[row]))]
    if not sizes:
        return settings
    room = float(np.median([min(wide / settings.width, high / settings.height) for wide, high in sizes]))
    scale = min(smallest**-0.5, room)
    if scale < WORTH_IT:
        return settings
    return replace(settings, height=round(scale * settings.height), width=round(scale * settings.width))


def _stored_size(image: bytes | Path | None) -> tuple[int, int] | None:
    """Width and height that stand in an image's header; None where it has none, or cannot be read."""
    if image is None:
        return None
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.size
    except Exception:  # whoever reads the row says what is wrong with it
        return None


def _pixel_cache(config: RunConfig, settings: ImageSettings, items: ItemDataset) -> PixelCache | None:
    """A cache of the split's images, where they fit."""
    data = config.data
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
