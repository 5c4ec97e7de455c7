"""From a data card to checked products: open the source, take the split, set bad rows aside."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualtower.data.cards import DataCard
from dualtower.data.extra_images import read_image_lists
from dualtower.data.image_check import broken_images
from dualtower.data.items import ItemDataset
from dualtower.data.memory import release_unused_memory
from dualtower.data.rows.blocks import require_columns
from dualtower.data.rows.check import bad_rows
from dualtower.data.rows.file import HASHED
from dualtower.data.rows.source import stored_rows
from dualtower.data.rows.table import ID, PRODUCT_ID, RowTable
from dualtower.data.sources import OpenSource, open_source
from dualtower.data.splits import EVERYTHING, Share, hashed, split_parts
from dualtower.errors import BrokenImage, RowError, SourceError

__all__ = ["find_broken_images", "load_items", "read_split", "with_advice", "without_broken_images"]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
HASH_COLUMNS = {"id": ID, "product_id": PRODUCT_ID}
_MANY = 50_000
"""Rows that leave enough to the allocators to be worth the quarter of a second that it takes to collect it."""


def load_items(
    card: DataCard,
    split: str,
    *,
    source: str | Path | None = None,
    on_error: OnError = "raise",
    check_images: bool = True,
    remember: bool = False,
) -> ItemDataset:
    """Load and check one split of a card.

    Args:
        card: See `dualtower.data.cards.load_card`.
        split: A split of the card, or ``all`` for the whole catalog.
        source: Local file or folder, or ``hub:user/name``, to read in place of the card's own source.
        on_error: ``raise`` stops at the first bad row; ``skip`` leaves bad rows out and lists them in
            ``skipped``.
        check_images: Decode every image once (some 6,000 thumbnails per second). Without it, a broken
            image is found only when a batch needs it.
        remember: Leave images out of the check that were checked before and have not changed since.

    Raises:
        SourceError: The source is missing, empty or unreadable.
        CardError: The card does not fit its source.
        UnknownSplit: There is no such split.
        RowError: A row has no id, text or product id, or the id of another row, or a number that is none.
        BrokenImage: An image is missing or cannot be decoded.
    """
    items = read_split(card, split, source=source, on_error=on_error, check_images=check_images, remember=remember)
    if len(items) > _MANY:
        release_unused_memory()
    if items.skipped:
        logger.warning("%s, %s: left out %d bad rows", card.name, split, len(items.skipped))
    if not len(items):
        first = f"; the first of {len(items.skipped):,} bad rows: {items.skipped[0]}" if items.skipped else ""
        raise SourceError(f"{card.name}: split {split!r} has no usable row{first}")
    return items


def read_split(
    card: DataCard,
    split: str,
    *,
    source: str | Path | None = None,
    on_error: OnError = "raise",
    check_images: bool = True,
    remember: bool = False,
) -> ItemDataset:
    """Do what `load_items` does, but accept a split without any usable row."""
    if card.source.synthetic is not None and source is None:
        return _draw(card, split)
    opened = open_source(card, source=source)
    parts: list[ItemDataset] = []
    unseen: list[ItemDataset] = []  # before the check of their images: ids must differ between all of these rows
    for name, share in split_parts(card, opened, split):
        part = _load_part(card, opened, name, share, on_error, unseen)
        unseen.append(part)
        if check_images and card.columns.image is not None:
            where = f"{opened.where} ({name})"
            part = without_broken_images(part, where, on_error=on_error, remember=remember)
        parts.append(part)
    return ItemDataset.concatenate(parts, split=split)


def find_broken_images(items: ItemDataset) -> list[BrokenImage]:
    """Decode every image; return those that are missing or cannot be decoded, in the order of the rows."""
    where = f"{items.card} ({items.split})"
    return [error for _, error in broken_images(items, where)]


def _draw(card: DataCard, split: str) -> ItemDataset:
    from dualtower.data.synthetic.catalog import synthesize_catalog

    language: Any = card.source.synthetic
    items = synthesize_catalog(language=language, split=split, **card.source.options)
    items.card = card.name
    titled, with_images = bool(card.columns.captions), bool(card.columns.image_columns)
    if titled and with_images:
        return items
    rows = [replace(p, texts=p.texts if titled else (), image=p.image if with_images else None) for p in items]
    return ItemDataset.from_rows(rows, card=card.name, split=split)


def _load_part(
    card: DataCard, opened: OpenSource, name: str, share: Share, on_error: OnError, before: Sequence[ItemDataset]
) -> ItemDataset:
    """The good rows of one split of the source, of those whose hash lies in `share`."""
    dataset, where = opened.splits[name], f"{opened.where} ({name})"
    require_columns(card.columns.named(), dataset, where)
    rows = stored_rows(card, opened, name, hashed=_hashed_column(card, dataset, where, share))
    chosen = np.arange(len(rows))
    if share != EVERYTHING:
        assert card.splits.by_hash is not None
        shares = hashed(rows.codes(HASH_COLUMNS.get(card.splits.by_hash.column, HASHED)))
        chosen = np.flatnonzero((share[0] <= shares) & (shares < share[1]))
    images, extra_images = read_image_lists(dataset, card.columns.image_columns, opened.folder, count=len(rows))
    problems = bad_rows(rows, chosen, [part.columns for part in before], where=where)
    if problems and on_error == "raise":
        raise with_advice(next(iter(problems.values())))
    good = chosen[~np.isin(chosen, np.fromiter(problems, np.int64, len(problems)))] if problems else chosen
    everything = len(good) == len(rows)
    return ItemDataset(
        RowTable([rows], None if everything else good),
        images=images if everything else images.select(good),
        extra_images=extra_images if everything else extra_images.select(good),
        card=card.name,
        split=name,
        skipped=list(problems.values()),
    )


def _hashed_column(card: DataCard, dataset: Any, where: str, share: Share) -> str | None:
    """The column whose hash divides the rows, where it is neither the id nor the identity."""
    rule = card.splits.by_hash
    if share == EVERYTHING or rule is None or rule.column in HASH_COLUMNS:
        return None
    require_columns({"splits.by_hash": [rule.column]}, dataset, where)
    return rule.column


def without_broken_images(
    items: ItemDataset, where: str, *, on_error: OnError = "raise", remember: bool = False
) -> ItemDataset:
    """Decode every image, and leave out the rows of those that cannot be, or stop at one.

    Args:
        items: Any rows.
        where: File or dataset of the images, for messages.
        on_error: As in `load_items`.
        remember: As in `load_items`.

    Raises:
        BrokenImage: An image is missing or cannot be decoded, and `on_error` is ``raise``.
    """
    found = broken_images(items, where, stop_early=on_error == "raise", remember=remember)
    if not found:
        return items
    if on_error == "raise":
        raise with_advice(found[0][1])
    broken: dict[int, RowError] = {}
    for row, error in found:
        broken.setdefault(row, error)
    kept = items.select(i for i in range(len(items)) if i not in broken)
    kept.skipped += broken.values()
    return kept


def with_advice(error: RowError) -> RowError:
    """The error, with what to type where one row is not worth a stop."""
    return type(error)(error.where, error.row, f"{error.reason}; --data.on_error skip leaves such rows out")
