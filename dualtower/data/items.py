"""Products: the checked rows of one split. Images stay undecoded, on disk, until a collator needs them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from dualtower.data.extra_images import ExtraImages
from dualtower.data.image_columns import ImageColumn, digest
from dualtower.errors import DataError, RowError
from dualtower.types import Item, product_code

__all__ = ["ItemDataset"]


class ItemDataset(Sequence[Item]):
    """Rows of one split of a catalog.

    Attributes:
        card: Name of the data card.
        split: Name of the split.
        ids: Unique row ids.
        product_ids: Identity of each row; rows of one product are positives of each other.
        codes: `product_code` of each row, int64 ``[N]``.
        texts: Captions of each row; none where the card names no text.
        images: The first image of each row, or None.
        extra_images: Further images of the rows that have several.
        attributes: Attribute -> values, one per row.
        skipped: The rows that ``on_error="skip"`` left out, each with its reason.
    """

    def __init__(
        self,
        ids: list[str],
        product_ids: list[str],
        *,
        texts: list[tuple[str, ...]],
        images: ImageColumn,
        extra_images: ExtraImages | None = None,
        attributes: Mapping[str, list[Any]],
        card: str,
        split: str,
        skipped: Sequence[RowError] = (),
    ) -> None:
        self.card, self.split = card, split
        self.ids, self.product_ids, self.texts = ids, product_ids, texts
        self.images, self.attributes = images, attributes
        self.extra_images = extra_images or ExtraImages.none()
        self.skipped = list(skipped)
        if len(set(ids)) < len(ids):
            raise DataError(f"{card}: id {Counter(ids).most_common(1)[0][0]!r} stands for more than one row")
        code_of = {product_id: product_code(product_id) for product_id in set(product_ids)}
        self.codes = np.array([code_of[p] for p in product_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> ItemDataset: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return Item(
            id=self.ids[index],
            product_id=self.product_ids[index],
            texts=self.texts[index],
            image=self.images[index],
            attributes={name: values[index] for name, values in self.attributes.items()},
            more_images=self.extra_images.of(index % len(self)),
        )

    def __repr__(self) -> str:
        return f"Products(card={self.card!r}, split={self.split!r}, rows={len(self)})"

    def visit(self, row: int, draw: int) -> Item:
        """A row with one of its images, and its captions beginning with one of them.

        Args:
            row: Its number.
            draw: Chooses both, a number from 0 to 2^31.
        """
        first, last = self.extra_images.span(row)
        captions, images = self.texts[row], 1 + last - first
        several = max(1, len(captions))
        caption, number = draw % several, draw // several % images
        return Item(
            id=self.ids[row],
            product_id=self.product_ids[row],
            texts=captions[caption:] + captions[:caption],
            image=self.images[row] if number == 0 else self.extra_images.images[first + number - 1],
            attributes={name: values[row] for name, values in self.attributes.items()},
            image_number=number,
        )

    def gallery(self) -> tuple[ImageColumn, np.ndarray, np.ndarray]:
        """Every image of every row.

        Returns:
            The images, row after row; the row of each, int64 ``[M]``; and which image of its row it is, from 0.
        """
        with_images = np.array([i for i, image in enumerate(self.images) if image is not None], np.int64)
        rows = np.concatenate([with_images, self.extra_images.rows])
        order = np.argsort(rows, kind="stable")
        places = np.concatenate([with_images, len(self) + np.arange(len(self.extra_images))])[order]
        rows = rows[order]
        numbers = np.arange(len(rows)) - np.searchsorted(rows, rows)
        return ImageColumn.concatenate([self.images, self.extra_images.images]).select(places), rows, numbers

    def select(self, indices: Iterable[int]) -> ItemDataset:
        """The rows of these numbers, in their order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return ItemDataset(
            [self.ids[i] for i in chosen],
            [self.product_ids[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            images=self.images.select(chosen),
            extra_images=self.extra_images.select(chosen),
            attributes={name: [values[i] for i in chosen] for name, values in self.attributes.items()},
            card=self.card,
            split=self.split,
            skipped=self.skipped,
        )

    @classmethod
    def from_rows(cls, rows: Sequence[Item], *, card: str = "in-memory", split: str = "all") -> ItemDataset:
        """Products from rows in memory.

        Raises:
            DataError: Two rows have the same id.
        """
        names = dict.fromkeys(name for row in rows for name in row.attributes)
        return cls(
            [row.id for row in rows],
            [row.product_id for row in rows],
            texts=[row.texts for row in rows],
            images=ImageColumn([[row.image for row in rows]]),
            extra_images=ExtraImages.of_lists([row.more_images for row in rows]),
            attributes={name: [row.attributes.get(name) for row in rows] for name in names},
            card=card,
            split=split,
        )

    @staticmethod
    def concatenate(parts: Sequence[ItemDataset], *, split: str | None = None) -> ItemDataset:
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
        return ItemDataset(
            [row_id for part in parts for row_id in part.ids],
            [product_id for part in parts for product_id in part.product_ids],
            texts=[texts for part in parts for texts in part.texts],
            images=ImageColumn.concatenate([part.images for part in parts]),
            extra_images=ExtraImages.concatenate([(len(part), part.extra_images) for part in parts]),
            attributes={
                name: [value for part in parts for value in part.attributes.get(name, [None] * len(part))]
                for name in names
            },
            card="+".join(dict.fromkeys(part.card for part in parts)),
            split=split or "+".join(dict.fromkeys(part.split for part in parts)),
            skipped=[error for part in parts for error in part.skipped],
        )

    @cached_property
    def image_digests(self) -> list[bytes]:
        """A hash of the bytes of each row's first image; empty where there is none. Reads them all."""
        return [digest(image) for image in self.images]

    @cached_property
    def extra_image_digests(self) -> list[bytes]:
        """A hash of the bytes of each further image. Reads them all."""
        return [digest(image) for image in self.extra_images.images]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits over ids, product ids, texts and image bytes; the same on every machine."""
        state = hashlib.blake2b(digest_size=6)
        for row, (row_id, product_id, texts, image) in enumerate(
            zip(self.ids, self.product_ids, self.texts, self.image_digests, strict=True)
        ):
            extra_images = self.extra_image_digests[slice(*self.extra_images.span(row))]
            state.update(
                json.dumps([row_id, product_id, texts, image.hex(), *(d.hex() for d in extra_images)]).encode()
            )
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
        """Twelve hex digits over the sizes of all images; reads none of them."""
        state = hashlib.blake2b(digest_size=6)
        for numbers in (self.images.sizes(), self.extra_images.images.sizes(), self.extra_images.rows):
            state.update(numbers.tobytes())
        return state.hexdigest()
