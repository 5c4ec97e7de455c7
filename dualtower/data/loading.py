"""From a data card to checked products: open the source, take the split, set bad rows aside."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualtower.data.cards import DataCard
from dualtower.data.pictures import broken_pictures
from dualtower.data.products import Products
from dualtower.data.rows import bad_rows, hash_values, read_rows
from dualtower.data.sources import OpenSource, open_source
from dualtower.data.splits import EVERYTHING, Share, hashed, split_parts
from dualtower.errors import BrokenImage, RowError, SourceError

__all__ = ["find_broken_images", "load_products", "read_split"]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


def load_products(
    card: DataCard,
    split: str,
    *,
    source: str | Path | None = None,
    on_error: OnError = "raise",
    check_images: bool = True,
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

    Raises:
        SourceError: The source is missing, empty or unreadable.
        CardError: The card does not fit its source.
        UnknownSplit: There is no such split.
        RowError: A row has no id, text or product id, or the id of another row, or a number that is none.
        BrokenImage: A picture is missing or cannot be decoded.
    """
    products = read_split(card, split, source=source, on_error=on_error, check_images=check_images)
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
            part = _without_broken_images(part, f"{opened.where} ({name})", on_error)
        parts.append(part)
    return Products.concatenate(parts, split=split)


def find_broken_images(products: Products) -> list[BrokenImage]:
    """Decode every picture; return those that are missing or cannot be decoded, in the order of the rows."""
    where = f"{products.card} ({products.split})"
    return [error for _, error in _broken(products, where)]


def _draw(card: DataCard, split: str) -> Products:
    from dualtower.data.drawn import draw_catalogue

    language: Any = card.source.drawn
    products = draw_catalogue(language=language, split=split, **card.source.options)
    products.card = card.name
    return products


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
    problems = bad_rows(rows, chosen, taken, numeric=card.columns.numeric)
    if problems and on_error == "raise":
        raise _with_advice(next(iter(problems.values())))
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


def _broken(products: Products, where: str) -> Generator[tuple[int, BrokenImage], None, None]:
    """Row number and error of each picture that is missing or cannot be decoded; first pictures first."""
    yield from broken_pictures(products.pictures, products.ids, where=where)
    further = products.further
    numbers = np.arange(len(further)) - np.searchsorted(further.rows, further.rows) + 2
    names = [f"{products.ids[row]}, picture {n}" for row, n in zip(further.rows, numbers, strict=True)]
    for i, error in broken_pictures(further.pictures, names, where=where):
        yield int(further.rows[i]), error


def _without_broken_images(products: Products, where: str, on_error: OnError) -> Products:
    broken: dict[int, RowError] = {}
    with closing(_broken(products, where)) as found:
        for i, error in found:
            if on_error == "raise":
                raise _with_advice(error)
            broken.setdefault(i, error)
    if not broken:
        return products
    kept = products.select(i for i in range(len(products)) if i not in broken)
    kept.skipped += broken.values()
    return kept


def _with_advice(error: RowError) -> RowError:
    return type(error)(error.where, error.row, f"{error.reason}; --data.on_error skip leaves such rows out")
