"""Products: the checked rows of one split. Pictures stay undecoded, on disk, until a collator needs them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

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
