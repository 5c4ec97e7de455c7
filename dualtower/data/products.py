"""Products: the checked rows of one split. Pictures stay undecoded, on disk, until a collator needs them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from dualtower.data.albums import FurtherPictures
from dualtower.data.pictures import Pictures, digest
from dualtower.errors import DataError, RowError
from dualtower.types import Product, product_code

__all__ = ["Products"]


class Products(Sequence[Product]):
    """Rows of one split of a catalogue.

    Attributes:
        card: Name of the data card.
        split: Name of the split.
        ids: Unique row ids.
        product_ids: Identity of each row; rows of one product are positives of each other.
        codes: `product_code` of each row, int64 ``[N]``.
        texts: Captions of each row; none where the card names no text.
        pictures: The first picture of each row, or None.
        further: Further pictures of the rows that have several.
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
        further: FurtherPictures | None = None,
        attributes: Mapping[str, list[Any]],
        card: str,
        split: str,
        skipped: Sequence[RowError] = (),
    ) -> None:
        self.card, self.split = card, split
        self.ids, self.product_ids, self.texts = ids, product_ids, texts
        self.pictures, self.attributes = pictures, attributes
        self.further = further or FurtherPictures.none()
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
            more_images=self.further.of(index % len(self)),
        )

    def __repr__(self) -> str:
        return f"Products(card={self.card!r}, split={self.split!r}, rows={len(self)})"

    def visit(self, row: int, draw: int) -> Product:
        """A row with one of its pictures, and its captions beginning with one of them.

        Args:
            row: Its number.
            draw: Chooses both, a number from 0 to 2^31.
        """
        first, last = self.further.span(row)
        captions, images = self.texts[row], 1 + last - first
        several = max(1, len(captions))
        caption, number = draw % several, draw // several % images
        return Product(
            id=self.ids[row],
            product_id=self.product_ids[row],
            texts=captions[caption:] + captions[:caption],
            image=self.pictures[row] if number == 0 else self.further.pictures[first + number - 1],
            attributes={name: values[row] for name, values in self.attributes.items()},
            image_number=number,
        )

    def gallery(self) -> tuple[Pictures, np.ndarray, np.ndarray]:
        """Every picture of every row.

        Returns:
            The pictures, row after row; the row of each, int64 ``[M]``; and which picture of its row it is, from 0.
        """
        pictured = np.array([i for i, picture in enumerate(self.pictures) if picture is not None], np.int64)
        rows = np.concatenate([pictured, self.further.rows])
        order = np.argsort(rows, kind="stable")
        places = np.concatenate([pictured, len(self) + np.arange(len(self.further))])[order]
        rows = rows[order]
        numbers = np.arange(len(rows)) - np.searchsorted(rows, rows)
        return Pictures.concatenate([self.pictures, self.further.pictures]).select(places), rows, numbers

    def select(self, indices: Iterable[int]) -> Products:
        """The rows of these numbers, in their order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return Products(
            [self.ids[i] for i in chosen],
            [self.product_ids[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            pictures=self.pictures.select(chosen),
            further=self.further.select(chosen),
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
            further=FurtherPictures.of_albums([row.more_images for row in rows]),
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
            further=FurtherPictures.concatenate([(len(part), part.further) for part in parts]),
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
        """A hash of the bytes of each row's first picture; empty where there is none. Reads them all."""
        return [digest(picture) for picture in self.pictures]

    @cached_property
    def further_digests(self) -> list[bytes]:
        """A hash of the bytes of each further picture. Reads them all."""
        return [digest(picture) for picture in self.further.pictures]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits over ids, product ids, texts and picture bytes; the same on every machine."""
        state = hashlib.blake2b(digest_size=6)
        for row, (row_id, product_id, texts, picture) in enumerate(
            zip(self.ids, self.product_ids, self.texts, self.picture_digests, strict=True)
        ):
            further = self.further_digests[slice(*self.further.span(row))]
            state.update(json.dumps([row_id, product_id, texts, picture.hex(), *(d.hex() for d in further)]).encode())
        return state.hexdigest()

    @cached_property
    def rows_fingerprint(self) -> str:
        """Twelve hex digits over ids, product ids, texts and attributes, in their order."""
        state = hashlib.blake2b(digest_size=6)
        for row in zip(self.ids, self.product_ids, self.texts, strict=True):
            state.update(json.dumps(row).encode())
        for name, values in sorted(self.attributes.items()):
            state.update(json.dumps([name, values], default=str).encode())
        return state.hexdigest()

    @cached_property
    def sizes_fingerprint(self) -> str:
        """Twelve hex digits over the sizes of all pictures; reads none of them."""
        state = hashlib.blake2b(digest_size=6)
        for numbers in (self.pictures.sizes(), self.further.pictures.sizes(), self.further.rows):
            state.update(numbers.tobytes())
        return state.hexdigest()
