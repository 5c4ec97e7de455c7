"""From a data card to checked products: open the source, take the split, set bad rows aside."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualtower.data.cards import DataCard
from dualtower.data.image_check import broken_images
from dualtower.data.products import Products
from dualtower.data.rows import bad_rows, hash_values, read_rows
from dualtower.data.sources import OpenSource, open_source
from dualtower.data.splits import EVERYTHING, Share, hashed, split_parts
from dualtower.errors import BrokenImage, RowError, SourceError

__all__ = ["find_broken_images", "load_products", "read_split", "with_advice", "without_broken_images"]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


def load_products(
    card: DataCard,
    split: str,
    *,
    source: str | Path | None = None,
    on_error: OnError = "raise",
    check_images: bool = True,
    remember: bool = False,
) -> Products:
    """Load and check one split of a card.

    Args:
        card: See `dualtower.data.cards.load_card`.
        split: A split of the card, or ``all`` for the whole catalogue.
        source: Local file or folder, or ``hub:user/name``, to read in place of the card's own source.
        on_error: ``raise`` stops at the first bad row; ``skip`` leaves bad rows out and lists them in
            ``skipped``.
        check_images: Decode every picture once (some 6,000 thumbnails per second). Without it, a broken
            picture is found only when a batch needs it.
        remember: Leave pictures out of the check that were checked before and have not changed since.

    Raises:
        SourceError: The source is missing, empty or unreadable.
        CardError: The card does not fit its source.
        UnknownSplit: There is no such split.
        RowError: A row has no id, text or product id, or the id of another row, or a number that is none.
        BrokenImage: A picture is missing or cannot be decoded.
    """
    products = read_split(card, split, source=source, on_error=on_error, check_images=check_images, remember=remember)
    if products.skipped:
        logger.warning("%s, %s: left out %d bad rows", card.name, split, len(products.skipped))
    if not len(products):
        first = f"; the first of {len(products.skipped):,} bad rows: {products.skipped[0]}" if products.skipped else ""
        raise SourceError(f"{card.name}: split {split!r} has no usable row{first}")
    return products


def read_split(
    card: DataCard,
    split: str,
    *,
    source: str | Path | None = None,
    on_error: OnError = "raise",
    check_images: bool = True,
    remember: bool = False,
) -> Products:
    """Do what `load_products` does, but accept a split without any usable row."""
    if card.source.drawn is not None and source is None:
        return _draw(card, split)
    opened = open_source(card, source=source)
    parts: list[Products] = []
    taken: set[str] = set()  # ids, which must differ between the splits of the source as well
    for name, share in split_parts(card, opened, split):
        part = _load_part(card, opened, name, share, on_error, taken)
        if check_images and card.columns.image is not None:
            where = f"{opened.where} ({name})"
            part = without_broken_images(part, where, on_error=on_error, remember=remember)
        parts.append(part)
    return Products.concatenate(parts, split=split)


def find_broken_images(products: Products) -> list[BrokenImage]:
    """Decode every picture; return those that are missing or cannot be decoded, in the order of the rows."""
    where = f"{products.card} ({products.split})"
    return [error for _, error in broken_images(products, where)]


def _draw(card: DataCard, split: str) -> Products:
    from dualtower.data.drawn import draw_catalogue

    language: Any = card.source.drawn
    products = draw_catalogue(language=language, split=split, **card.source.options)
    products.card = card.name
    titled, pictured = bool(card.columns.captions), bool(card.columns.image_columns)
    if titled and pictured:
        return products
    rows = [replace(p, texts=p.texts if titled else (), image=p.image if pictured else None) for p in products]
    return Products.from_rows(rows, card=card.name, split=split)


def _load_part(
    card: DataCard, opened: OpenSource, name: str, share: Share, on_error: OnError, taken: set[str]
) -> Products:
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
    return Products(
        [rows.ids[i] for i in good],
        [rows.product_ids[i] for i in good],
        texts=[rows.texts[i] for i in good],
        pictures=rows.pictures.select(np.array(good, dtype=np.int64)),
        further=rows.further.select(np.array(good, dtype=np.int64)),
        attributes={name: [values[i] for i in good] for name, values in rows.attributes.items()},
        card=card.name,
        split=name,
        skipped=list(problems.values()),
    )


def without_broken_images(
    products: Products, where: str, *, on_error: OnError = "raise", remember: bool = False
) -> Products:
    """Decode every picture, and leave out the rows of those that cannot be, or stop at one.

    Args:
        products: Any rows.
        where: File or dataset of the pictures, for messages.
        on_error: As in `load_products`.
        remember: As in `load_products`.

    Raises:
        BrokenImage: A picture is missing or cannot be decoded, and `on_error` is ``raise``.
    """
    found = broken_images(products, where, stop_early=on_error == "raise", remember=remember)
    if not found:
        return products
    if on_error == "raise":
        raise with_advice(found[0][1])
    broken: dict[int, RowError] = {}
    for row, error in found:
        broken.setdefault(row, error)
    kept = products.select(i for i in range(len(products)) if i not in broken)
    kept.skipped += broken.values()
    return kept


def with_advice(error: RowError) -> RowError:
    """The error, with what to type where one row is not worth a stop."""
    return type(error)(error.where, error.row, f"{error.reason}; --data.on_error skip leaves such rows out")
