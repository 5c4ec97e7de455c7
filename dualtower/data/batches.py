"""From checked rows to batches: the collator, the cache of decoded images, and the loader."""

from __future__ import annotations

import bisect
import gc
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dualtower.data.items import ItemDataset
from dualtower.data.partners import Partners
from dualtower.data.rows.table import IdIndex
from dualtower.data.sampling import BatchSampler
from dualtower.data.transforms.attributes import AttributesConfig, attribute_values, class_labels
from dualtower.data.transforms.images import ImageSettings, open_image, to_pixels
from dualtower.data.transforms.presets import PresetRule
from dualtower.data.transforms.tokenizer import tokenize
from dualtower.errors import BrokenImage, DataError
from dualtower.types import Batch, Item, product_code

__all__ = ["Collator", "PixelCache", "training_loader"]

logger = logging.getLogger(__name__)

PREFETCHED = 4
"""Batches that each loader worker makes ahead."""


@dataclass(frozen=True)
class Collator:
    """Decode, resize and tokenize products into one `Batch`: the same class in training, evaluation and serving.

    Attributes:
        tokenizer: A Transformers tokenizer, or None for batches without texts.
        image_settings: Size and resize rule of the images, or None for batches without images.
        max_length: Texts are cut to this many tokens.
        padding: Texts are padded to the longest of their batch, or all of them to `max_length` (`fixed`).
        cache: Decoded images to read instead of decoding again, or None.
        attributes: Attributes that the model reads, or None.
        classes: Attribute -> classes that heads learn to tell apart.
        captions: Captions that are read of each row, the first ones of its texts; a row with fewer repeats them.
        preset_rule: Which augmentation a row's images get; None is the same for all.
    """

    tokenizer: Any | None
    image_settings: ImageSettings | None
    max_length: int = 64
    padding: Literal["longest", "fixed"] = "longest"
    cache: PixelCache | None = None
    attributes: AttributesConfig | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    captions: int = 1
    preset_rule: PresetRule | None = None

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Collate; of a product with several images the first one is taken, and the first `captions` of its captions.

        Raises:
            BrokenImage: An image cannot be decoded; names the row.
        """
        rows = [p.attributes for p in items]
        texts = [self._captions(items, n) for n in range(self.captions if self.tokenizer is not None else 0)]
        return Batch(
            ids=tuple(p.id for p in items),
            product_codes=torch.tensor([product_code(p.product_id) for p in items], dtype=torch.int64),
            pixels=self.pixels(items) if self.image_settings else None,
            more_views=self._partners(items) if self.image_settings else (),
            tokens=self.tokens(texts[0]) if texts else None,
            attributes=attribute_values(self.attributes, rows) if self.attributes else None,
            labels=class_labels(self.classes, rows) if self.classes else None,
            more_tokens=tuple(map(self.tokens, texts[1:])),
            presets=self.preset_rule.codes(rows) if self.preset_rule else None,
        )

    def pixels(self, items: Sequence[Item]) -> torch.Tensor:
        """Decoded images, uint8 ``[B, 3, H, W]``."""
        assert self.image_settings is not None
        if self.cache is not None:
            return self.cache.read(items)
        return torch.from_numpy(np.stack([decode(p, self.image_settings) for p in items]))

    def _partners(self, items: Sequence[Item]) -> tuple[torch.Tensor, ...]:
        """Images of the rows' partners, where they have any."""
        partners = [item.partner for item in items if item.partner is not None]
        return (self.pixels(partners),) if len(partners) == len(items) and partners else ()

    def _captions(self, items: Sequence[Item], number: int) -> list[str]:
        """A caption of each product."""
        for item in items:
            if not item.texts:
                raise DataError(f"row {item.id!r} has no text, and this model reads texts")
        return [item.texts[number % len(item.texts)] for item in items]

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids and mask, int64 ``[B, L]``, with L the longest text of this batch or, where fixed, `max_length`."""
        assert self.tokenizer is not None
        return tokenize(self.tokenizer, texts, max_length=self.max_length, fixed=self.padding == "fixed")


class TrainingCollator:
    """Collates for training, where an image that has broken since it was checked must not end a run of days.

    A row whose image cannot be decoded gives its place to the next good row of the batch, so that shapes stay equal
    on all ranks, and the batch is the same whenever it is made again. The copy is a positive of its original, like any
    two rows of one product. `Batch.broken` says which rows that happened to.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Collate.

        Raises:
            DataError: Not one image of the batch can be decoded.
        """
        try:
            return self.collator(items)
        except BrokenImage:
            pass
        errors = [self._error(item) for item in items]
        good = [place for place, error in enumerate(errors) if error is None]
        broken = tuple(error for error in errors if error is not None)
        if not good:
            raise DataError(f"none of the {len(items)} images of a batch can be decoded; the first: {broken[0]}")
        nearest = [good[bisect.bisect_left(good, place) % len(good)] for place in range(len(items))]
        return replace(self.collator([items[place] for place in nearest]), broken=broken)

    def _error(self, item: Item) -> BrokenImage | None:
        try:
            self.collator.pixels([item] if item.partner is None else [item, item.partner])
        except BrokenImage as error:
            return error
        return None


def decode(item: Item, settings: ImageSettings) -> np.ndarray:
    """Decode one product's image to uint8 ``[3, H, W]``."""
    name = item.id + (f", image {item.image_number + 1}" if item.image_number else "")
    if item.image is None:
        raise BrokenImage("catalog", name, "the row has no image")
    return to_pixels(open_image(item.image, where="catalog", row=name), settings)


class PixelCache:
    """Decoded images of a split in shared memory, filled as they are first needed.

    Small images cost more to decode than to keep: 39,248 photos of 60x80 take 565 MB as pixels. The tensor
    lives in shared memory, so that loader workers fill it for each other.
    """

    def __init__(self, items: ItemDataset, settings: ImageSettings) -> None:
        self.settings = settings
        self.index = IdIndex(items.columns)
        self.extra_images = {row: len(items) + first for row, first in _first_places(items.extra_images.rows)}
        count = len(items) + len(items.extra_images)
        shape = (count, 3, settings.height, settings.width)
        self.stored = torch.empty(shape, dtype=torch.uint8).share_memory_()
        self.filled = torch.zeros(count, dtype=torch.bool).share_memory_()

    @classmethod
    def if_there_is_room(cls, items: ItemDataset, settings: ImageSettings, *, in_transit: int = 0) -> PixelCache | None:
        """Make a cache, or none where shared memory is too small for it, which the log then says.

        Args:
            items: Rows whose images to keep.
            settings: Their size.
            in_transit: Bytes of shared memory that must be left for the batches that loader workers hand over.
        """
        try:
            cache = cls(items, settings)
        except RuntimeError as error:  # torch asks for all pages at once, so nothing can go wrong later
            free, reason = _free_shared_memory(), f" ({error})"
        else:
            free, reason = _free_shared_memory(), ""
            if free is None or free >= in_transit:
                return cache
            del cache
        logger.warning(
            "no room to keep decoded images: they take %.0f MB, and %s is left in shared memory%s. They are decoded "
            "anew in every epoch; make /dev/shm larger (docker run --shm-size 2g), or set --data.cache-mb 0",
            cls.megabytes(items, settings),
            "nothing" if free is None else f"{free / 1e6:.0f} MB",
            reason,
        )
        return None

    @staticmethod
    def megabytes(items: ItemDataset, settings: ImageSettings) -> float:
        """Memory that a cache of these products would take, in MB."""
        return (len(items) + len(items.extra_images)) * 3 * settings.height * settings.width / 1e6

    def read(self, items: Sequence[Item]) -> torch.Tensor:
        """Images of these products, uint8 ``[B, 3, H, W]``; decodes those that nobody has asked for yet."""
        rows = self.index.rows([item.id for item in items]).tolist()
        places = [self._place(row, item) for row, item in zip(rows, items, strict=True)]
        for place, item in zip(places, items, strict=True):
            if not self.filled[place]:
                self.stored[place] = torch.from_numpy(decode(item, self.settings))
                self.filled[place] = True  # after the pixels: another worker must never see half an image
        return self.stored[places]

    def _place(self, row: int, item: Item) -> int:
        """First images stand at their rows, further ones behind all of them."""
        return row if item.image_number == 0 else self.extra_images[row] + item.image_number - 1


def _free_shared_memory() -> int | None:
    """Bytes that are free where torch keeps shared tensors; None where no file system holds them."""
    if not Path("/dev/shm").is_dir():
        return None
    system = os.statvfs("/dev/shm")
    return system.f_bavail * system.f_frsize


def _first_places(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Each row that has further images, and where they begin."""
    found, first = np.unique(rows, return_index=True)
    return zip(found.tolist(), first.tolist(), strict=True)


class _SampledItems(Dataset[Item]):
    """Rows addressed by (row, draw): the draw picks caption and image, so that workers keep no state of their own."""

    def __init__(self, items: ItemDataset, partners: Partners | None) -> None:
        self.items, self.partners = items, partners

    def __getitem__(self, address: tuple[int, int]) -> Item:
        item = self.items.visit(*address)
        return item if self.partners is None else self.partners.joined(item, *address)


def training_loader(
    items: ItemDataset, plan: BatchSampler, collator: Collator, *, workers: int = 0, partners: Partners | None = None
) -> DataLoader:
    """A loader over `plan`; call ``plan.set_epoch`` before iterating over it.

    Workers only decode and tokenize. They draw nothing at random, so their number never changes a result.

    Args:
        items: Rows of the split.
        plan: Which rows make which batch.
        collator: Makes batches of them.
        workers: Processes that do so.
        partners: Finds another image for each row, which is read too; None reads none.
    """
    return DataLoader(
        _SampledItems(items, partners),
        batch_sampler=plan,
        collate_fn=TrainingCollator(collator),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCHED if workers else None,
        generator=torch.Generator(),  # every new iterator draws a seed; from the global state, it would move dropout's
        worker_init_fn=_leave_signals_to_the_trainer,
    )


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; a worker that died of it would break the step to be saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    gc.freeze()  # a collection would write to, and so copy, all that the fork shares with the trainer
