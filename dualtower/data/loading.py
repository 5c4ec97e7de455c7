"""From a data card to checked products: open the source, take the split, set bad rows aside."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualtower.data.cards import DataCard
from dualtower.data.image_check import broken_images
from dualtower.data.items import ItemDataset
from dualtower.data.rows import bad_rows, hash_values, read_rows
from dualtower.data.sources import OpenSource, open_source
from dualtower.data.splits import EVERYTHING, Share, hashed, split_parts
from dualtower.errors import BrokenImage, RowError, SourceError

__all__ = ["find_broken_images", "load_items", "read_split", "with_advice", "without_broken_images"]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


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
    taken: set[str] = set()  # ids, which must differ between the splits of the source as well
    for name, share in split_parts(card, opened, split):
        part = _load_part(card, opened, name, share, on_error, taken)
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
    card: DataCard, opened: OpenSource, name: str, share: Share, on_error: OnError, taken: set[str]
) -> ItemDataset:
    """The good rows of one split of the source, of those whose hash lies in `share`."""
    dataset = opened.splits[name]
    rows = read_rows(dataset, card.columns, where=f"{opened.where} ({name})", split=name, folder=opened.folder)
    chosen = list(range(len(dataset)))
    if share != EVERYTHING:
        assert card.splits.by_hash is not None
        shares = hashed(hash_values(rows, dataset, card.splits.by_hash.column))
        chosen = np.flatnonzero((share[0] <= shares) & (shares < share[1])).tolist()
    problems = bad_rows(rows, chosen, taken, titled=bool(card.columns.captions), numeric=card.columns.numeric)
    if problems and on_error == "raise":
        raise with_advice(next(iter(problems.values())))
    good = [i for i in chosen if i not in problems]
    return ItemDataset(
        [rows.ids[i] for i in good],
        [rows.product_ids[i] for i in good],
        texts=[rows.texts[i] for i in good],
        images=rows.images.select(np.array(good, dtype=np.int64)),
        extra_images=rows.extra_images.select(np.array(good, dtype=np.int64)),
        attributes={name: [values[i] for i in good] for name, values in rows.attributes.items()},
        card=card.name,
        split=name,
        skipped=list(problems.values()),
    )


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
