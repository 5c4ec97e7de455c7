"""Products: the checked rows of one split. Pictures stay undecoded, on disk, until a collator needs them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from dualtower.data.cards import DataCard
from dualtower.data.pictures import Pictures, broken_pictures, digest
from dualtower.data.rows import bad_rows, hash_values, read_rows
from dualtower.data.sources import OpenSource, open_source
from dualtower.data.splits import EVERYTHING, Share, hashed, split_parts
from dualtower.errors import BrokenImage, DataError, RowError, SourceError
from dualtower.types import Product, product_code

__all__ = ["Products", "find_broken_images", "load_products"]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


class Products(Sequence[Product]):
    """Rows of one split of a catalogue.

    Attributes:
        card: Name of the data card.
        split: Name of the split.
        ids: Unique row ids.
        product_ids: Identity of each row; rows of one product are positives of each other.
        codes: `product_code` of each row, int64 ``[N]``.
        texts: Captions of each row, at least one.
        attributes: Attribute -> values, one per row.
        skipped: The rows that ``on_error="skip"`` left out, each with its reason.
    """

    def __init__(
        self,
        ids: list[str],
        product_ids: list[str],
        *,
        texts: list[tuple[str, ...]],
        pictures: Pictures,
        attributes: Mapping[str, list[Any]],
        card: str,
        split: str,
        skipped: Sequence[RowError] = (),
    ) -> None:
        self.card, self.split = card, split
        self.ids, self.product_ids, self.texts = ids, product_ids, texts
        self.pictures, self.attributes = pictures, attributes
        self.skipped = list(skipped)
        if len(set(ids)) < len(ids):
            raise DataError(f"{card}: id {Counter(ids).most_common(1)[0][0]!r} stands for more than one row")
        code_of = {product_id: product_code(product_id) for product_id in set(product_ids)}
        self.codes = np.array([code_of[p] for p in product_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Product: ...
    @overload
    def __getitem__(self, index: slice) -> Products: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return Product(
            id=self.ids[index],
            product_id=self.product_ids[index],
            texts=self.texts[index],
            image=self.pictures[index],
            attributes={name: values[index] for name, values in self.attributes.items()},
        )

    def __repr__(self) -> str:
        return f"Products(card={self.card!r}, split={self.split!r}, rows={len(self)})"

    def select(self, indices: Iterable[int]) -> Products:
        """The rows of these numbers, in their order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return Products(
            [self.ids[i] for i in chosen],
            [self.product_ids[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            pictures=self.pictures.select(chosen),
            attributes={name: [values[i] for i in chosen] for name, values in self.attributes.items()},
            card=self.card,
            split=self.split,
            skipped=self.skipped,
        )

    @classmethod
    def from_rows(cls, rows: Sequence[Product], *, card: str = "in-memory", split: str = "all") -> Products:
        """Products from rows in memory.

        Raises:
            DataError: Two rows have the same id.
        """
        names = dict.fromkeys(name for row in rows for name in row.attributes)
        return cls(
            [row.id for row in rows],
            [row.product_id for row in rows],
            texts=[row.texts for row in rows],
            pictures=Pictures([[row.image for row in rows]]),
            attributes={name: [row.attributes.get(name) for row in rows] for name in names},
            card=card,
            split=split,
        )

    @staticmethod
    def concatenate(parts: Sequence[Products], *, split: str | None = None) -> Products:
        """All rows of all parts, such as the splits of one card as one gallery.

        Args:
            parts: One or more.
            split: Name of the whole; by default the names of the parts, joined by a plus.

        Raises:
            DataError: Two rows have the same id, or there is no part.
        """
        if not parts:
            raise DataError("nothing to concatenate")
        names = dict.fromkeys(name for part in parts for name in part.attributes)
        return Products(
            [row_id for part in parts for row_id in part.ids],
            [product_id for part in parts for product_id in part.product_ids],
            texts=[texts for part in parts for texts in part.texts],
            pictures=Pictures.concatenate([part.pictures for part in parts]),
            attributes={
                name: [value for part in parts for value in part.attributes.get(name, [None] * len(part))]
                for name in names
            },
            card="+".join(dict.fromkeys(part.card for part in parts)),
            split=split or "+".join(dict.fromkeys(part.split for part in parts)),
            skipped=[error for part in parts for error in part.skipped],
        )

    @cached_property
    def picture_digests(self) -> list[bytes]:
        """A hash of each picture's bytes; empty where there is no picture. Reads them all."""
        return [digest(picture) for picture in self.pictures]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits over ids, product ids, texts and picture bytes; the same on every machine."""
        state = hashlib.blake2b(digest_size=6)
        for row_id, product_id, texts, picture in zip(
            self.ids, self.product_ids, self.texts, self.picture_digests, strict=True
        ):
            state.update(json.dumps([row_id, product_id, texts, picture.hex()]).encode())
        return state.hexdigest()


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
        RowError: A row has no id, text or product id, or the id of another row.
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
    if card.source.drawn is not None:
        return _draw(card, split, source)
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
    return [error for _, error in broken_pictures(products.pictures, products.ids, where=where)]


def _draw(card: DataCard, split: str, source: object) -> Products:
    from dualtower.data.drawn import draw_catalogue

    if source is not None:
        raise SourceError(f"card {card.name!r} is drawn by code and has no other source; leave out --data.source")
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
    problems = bad_rows(rows, chosen, taken)
    if problems and on_error == "raise":
        raise _with_advice(next(iter(problems.values())))
    good = [i for i in chosen if i not in problems]
    return Products(
        [rows.ids[i] for i in good],
        [rows.product_ids[i] for i in good],
        texts=[rows.texts[i] for i in good],
        pictures=rows.pictures.select(np.array(good, dtype=np.int64)),
        attributes={name: [values[i] for i in good] for name, values in rows.attributes.items()},
        card=card.name,
        split=name,
        skipped=list(problems.values()),
    )


def _without_broken_images(products: Products, where: str, on_error: OnError) -> Products:
    broken: dict[int, RowError] = {}
    with closing(broken_pictures(products.pictures, products.ids, where=where)) as found:
        for i, error in found:
            if on_error == "raise":
                raise _with_advice(error)
            broken[i] = error
    if not broken:
        return products
    kept = products.select(i for i in range(len(products)) if i not in broken)
    kept.skipped += broken.values()
    return kept


def _with_advice(error: RowError) -> RowError:
    return type(error)(error.where, error.row, f"{error.reason}; --data.on_error skip leaves such rows out")
