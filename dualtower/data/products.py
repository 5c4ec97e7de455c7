"""Products: the checked rows of one split. Rows and pictures stay on disk until somebody looks at them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from dualtower.data.albums import FurtherPictures
from dualtower.data.pictures import Pictures, digest
from dualtower.data.row_check import shared_codes
from dualtower.data.row_table import AT_ONCE, ID, PRODUCT_ID, HeldRows, RowTable
from dualtower.errors import DataError, RowError
from dualtower.types import Product

__all__ = ["Products"]


class Products(Sequence[Product]):
    """Rows of one split of a catalogue.

    What a row says is read from `columns` when somebody asks for it, so that a million rows cost as little memory as
    a thousand. `ids`, `product_ids`, `texts` and `attributes` are the same as whole lists, made anew at each look: for
    small catalogues.

    Args:
        columns: Ids, identities, captions and attributes.
        pictures: The first picture of each row, or None.
        further: Further pictures of the rows that have several.
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
        pictures: Pictures,
        further: FurtherPictures | None = None,
        card: str,
        split: str,
        skipped: Sequence[RowError] = (),
    ) -> None:
        self.card, self.split = card, split
        self.columns, self.pictures = columns, pictures
        self.further = further or FurtherPictures.none()
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
        """Captions of each row, at least one."""
        return list(self.columns.texts)

    @property
    def attributes(self) -> Mapping[str, list[Any]]:
        """Attribute -> values, one per row."""
        return _Lists(self.columns.attributes)

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> Product: ...
    @overload
    def __getitem__(self, index: slice) -> Products: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self):,}")
        row = index % len(self)
        row_id, product_id, texts, attributes = self.columns.row(row)
        return Product(row_id, product_id, texts, self.pictures[row], attributes, self.further.of(row))

    def __repr__(self) -> str:
        return f"Products(card={self.card!r}, split={self.split!r}, rows={len(self)})"

    def visit(self, row: int, draw: int) -> Product:
        """A row with one of its captions and one of its pictures, both chosen by `draw`, a number from 0 to 2^31."""
        row_id, product_id, captions, attributes = self.columns.row(row)
        first, last = self.further.span(row)
        images = 1 + last - first
        caption, number = draw % len(captions), draw // len(captions) % images
        return Product(
            id=row_id,
            product_id=product_id,
            texts=(captions[caption],),
            image=self.pictures[row] if number == 0 else self.further.pictures[first + number - 1],
            attributes=attributes,
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
            self.columns.select(chosen),
            pictures=self.pictures.select(chosen),
            further=self.further.select(chosen),
            card=self.card,
            split=self.split,
            skipped=self.skipped,
        )

    @classmethod
    def from_rows(cls, rows: Sequence[Product], *, card: str = "in-memory", split: str = "all") -> Products:
        """Products from rows in memory, where they stay.

        Raises:
            DataError: Two rows have the same id.
        """
        names = dict.fromkeys(name for row in rows for name in row.attributes)
        held = HeldRows(
            [row.id for row in rows],
            [row.product_id for row in rows],
            [row.texts for row in rows],
            {name: [row.attributes.get(name) for row in rows] for name in names},
        )
        return cls(
            RowTable([held]),
            pictures=Pictures([[row.image for row in rows]]),
            further=FurtherPictures.of_albums([row.more_images for row in rows]),
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
        return Products(
            RowTable.concatenate([part.columns for part in parts]),
            pictures=Pictures.concatenate([part.pictures for part in parts]),
            further=FurtherPictures.concatenate([(len(part), part.further) for part in parts]),
            card="+".join(dict.fromkeys(part.card for part in parts)),
            split=split or "+".join(dict.fromkeys(part.split for part in parts)),
            skipped=[error for part in parts for error in part.skipped],
        )

    @property
    def picture_digests(self) -> list[bytes]:
        """A hash of the bytes of each row's first picture; empty where there is none. Reads them all."""
        return [digest(picture) for picture in self.pictures]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits over ids, product ids, texts and picture bytes; the same on every machine."""
        state = hashlib.blake2b(digest_size=6)
        columns, further = self.columns, self.further
        told = zip(columns.ids, columns.product_ids, columns.texts, self.pictures, strict=True)
        for row, (row_id, product_id, texts, picture) in enumerate(told):
            digests = [digest(p).hex() for p in (picture, *further.of(row))]
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
                said = json.dumps(values[start : start + AT_ONCE], default=str)[1:-1]
                state.update((", " if start else "").encode() + said.encode())
            state.update(b"]]")
        return state.hexdigest()

    @cached_property
    def sizes_fingerprint(self) -> str:
        """Twelve hex digits over the sizes of all pictures; reads none of them."""
        state = hashlib.blake2b(digest_size=6)
        for numbers in (self.pictures.sizes(), self.further.pictures.sizes(), self.further.rows):
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
