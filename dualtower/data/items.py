"""Items: the checked rows of one split. Rows and images stay on disk until somebody looks at them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from dualtower.data.extra_images import ExtraImages
from dualtower.data.image_columns import ImageColumn, digest
from dualtower.data.rows.check import shared_codes
from dualtower.data.rows.table import AT_ONCE, ID, PRODUCT_ID, InMemoryRows, RowAttributes, RowTable
from dualtower.errors import DataError, RowError
from dualtower.types import Item

__all__ = ["ItemDataset"]


class ItemDataset(Sequence[Item]):
    """Rows of one split of a catalog.

    What a row says is read from `columns` when somebody asks for it, so that a million rows cost as little memory as
    a thousand. `ids`, `product_ids`, `texts` and `attributes` are the same as whole lists, made anew at each look: for
    small catalogs.

    Args:
        columns: Ids, identities, captions and attributes.
        images: The first image of each row, or None.
        extra_images: Further images of the rows that have several.
        card: Name of the data card.
        split: Name of the split.
        skipped: The rows that ``on_error="skip"`` left out, each with its reason.

    Attributes:
        codes: `product_code` of each row, int64 ``[N]``.

    Raises:
        DataError: Two rows have the same id.
    """

    def __init__(
        self,
        columns: RowTable,
        *,
        images: ImageColumn,
        extra_images: ExtraImages | None = None,
        card: str,
        split: str,
        skipped: Sequence[RowError] = (),
    ) -> None:
        self.card, self.split = card, split
        self.columns, self.images = columns, images
        self.extra_images = extra_images or ExtraImages.none()
        self.skipped = list(skipped)
        if (twice := _most_common_id(columns)) is not None:
            raise DataError(f"{card}: id {twice!r} stands for more than one row")
        self.codes = columns.codes(PRODUCT_ID)

    @property
    def ids(self) -> list[str]:
        """Unique row ids."""
        return list(self.columns.ids)

    @property
    def product_ids(self) -> list[str]:
        """Identity of each row; rows of one product are positives of each other."""
        return list(self.columns.product_ids)

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """Captions of each row; none where the card names no text."""
        return list(self.columns.texts)

    @property
    def attributes(self) -> Mapping[str, list[Any]]:
        """Attribute -> values, one per row."""
        return _Lists(self.columns.attributes)

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> ItemDataset: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self):,}")
        row = index % len(self)
        row_id, product_id, texts = self.columns.row(row)
        attributes = dict(RowAttributes(self.columns, row))
        return Item(row_id, product_id, texts, self.images[row], attributes, self.extra_images.of(row))

    def __repr__(self) -> str:
        return f"ItemDataset(card={self.card!r}, split={self.split!r}, rows={len(self)})"

    def visit(self, row: int, draw: int) -> Item:
        """A row with one of its images, and its captions beginning with one of them.

        Args:
            row: Its number.
            draw: Chooses both, a number from 0 to 2^31.
        """
        columns = self.columns.row(row)
        several = max(1, len(columns[2]))
        return self._visited(row, columns, draw // several % self.image_count(row), draw % several)

    def visit_image(self, row: int, number: int) -> Item:
        """A row with this one of its images, from 0."""
        return self._visited(row, self.columns.row(row), number, 0)

    def _visited(self, row: int, columns: tuple[str, str, tuple[str, ...]], number: int, caption: int) -> Item:
        row_id, product_id, captions = columns
        first, _ = self.extra_images.span(row)
        return Item(
            id=row_id,
            product_id=product_id,
            texts=captions[caption:] + captions[:caption],
            image=self.images[row] if number == 0 else self.extra_images.images[first + number - 1],
            attributes=RowAttributes(self.columns, row),
            image_number=number,
        )

    def image_count(self, row: int) -> int:
        """How many images a row has; 1 where it has none, so that it can be visited."""
        first, last = self.extra_images.span(row)
        return 1 + last - first

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
            self.columns.select(chosen),
            images=self.images.select(chosen),
            extra_images=self.extra_images.select(chosen),
            card=self.card,
            split=self.split,
            skipped=self.skipped,
        )

    def sample(self, rows: int) -> ItemDataset:
        """At most so many rows, but at least one product: whole products, drawn by the hashes of their names.

        The draw is always the same, and that of fewer rows is a part of that of more.
        """
        products, counts = np.unique(self.codes, return_counts=True)  # in the order of the hashes
        kept = products[: max(1, int((np.cumsum(counts) <= rows).sum()))]
        return self.select(np.flatnonzero(np.isin(self.codes, kept)))

    @classmethod
    def from_rows(cls, rows: Sequence[Item], *, card: str = "in-memory", split: str = "all") -> ItemDataset:
        """Items from rows in memory, where they stay.

        Raises:
            DataError: Two rows have the same id.
        """
        names = dict.fromkeys(name for row in rows for name in row.attributes)
        table = InMemoryRows(
            [row.id for row in rows],
            [row.product_id for row in rows],
            [row.texts for row in rows],
            {name: [row.attributes.get(name) for row in rows] for name in names},
        )
        return cls(
            RowTable([table]),
            images=ImageColumn([[row.image for row in rows]]),
            extra_images=ExtraImages.of_lists([row.more_images for row in rows]),
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
        return ItemDataset(
            RowTable.concatenate([part.columns for part in parts]),
            images=ImageColumn.concatenate([part.images for part in parts]),
            extra_images=ExtraImages.concatenate([(len(part), part.extra_images) for part in parts]),
            card="+".join(dict.fromkeys(part.card for part in parts)),
            split=split or "+".join(dict.fromkeys(part.split for part in parts)),
            skipped=[error for part in parts for error in part.skipped],
        )

    @property
    def image_digests(self) -> list[bytes]:
        """A hash of the bytes of each row's first image; empty where there is none. Reads them all."""
        return [digest(image) for image in self.images]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits over ids, product ids, texts and image bytes; the same on every machine."""
        state = hashlib.blake2b(digest_size=6)
        columns, extra_images = self.columns, self.extra_images
        rows = zip(columns.ids, columns.product_ids, columns.texts, self.images, strict=True)
        for row, (row_id, product_id, texts, image) in enumerate(rows):
            digests = [digest(p).hex() for p in (image, *extra_images.of(row))]
            state.update(json.dumps([row_id, product_id, texts, *digests]).encode())
        return state.hexdigest()

    @cached_property
    def rows_fingerprint(self) -> str:
        """Twelve hex digits over ids, product ids, texts and attributes, in their order."""
        state, columns = hashlib.blake2b(digest_size=6), self.columns
        for row in zip(columns.ids, columns.product_ids, columns.texts, strict=True):
            state.update(json.dumps(row).encode())
        for name, values in sorted(columns.attributes.items()):  # as JSON of the list [name, values], piece by piece
            state.update(f"[{json.dumps(name)}, [".encode())
            for start in range(0, len(values), AT_ONCE):
                values_json = json.dumps(values[start : start + AT_ONCE], default=str)[1:-1]
                state.update((", " if start else "").encode() + values_json.encode())
            state.update(b"]]")
        return state.hexdigest()

    @cached_property
    def sizes_fingerprint(self) -> str:
        """Twelve hex digits over the sizes of all images; reads none of them."""
        state = hashlib.blake2b(digest_size=6)
        for numbers in (self.images.sizes(), self.extra_images.images.sizes(), self.extra_images.rows):
            state.update(numbers.tobytes())
        return state.hexdigest()


class _Lists(Mapping[str, list[Any]]):
    """Columns by name, each as a whole list."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> list[Any]:
        return list(self._columns[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:  # without making the list
        return name in self._columns

    def __repr__(self) -> str:
        return repr(dict(self))


def _most_common_id(columns: RowTable) -> str | None:
    """The id that stands for the most rows, if one stands for several."""
    codes = columns.codes(ID)
    shared = shared_codes(codes)
    if not len(shared):
        return None
    ids = [columns.ids[row] for row in np.flatnonzero(np.isin(codes, shared)).tolist()]
    ((most, count),) = Counter(ids).most_common(1)
    return most if count > 1 else None
