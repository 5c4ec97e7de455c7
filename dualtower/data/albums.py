"""Rows with several pictures: each row's first one, and the further ones of the few rows that have more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.data.pictures import ArrowPictures, Picture, Pictures

__all__ = ["FurtherPictures", "read_albums"]


@dataclass(frozen=True, eq=False)
class FurtherPictures:
    """The second, third ... picture of those rows that have several; rows with a single one cost nothing.

    Attributes:
        pictures: M pictures, in the order of the rows and of the pictures within a row; none of them is None.
        rows: Row of each, ascending, int64 ``[M]``.
    """

    pictures: Pictures
    rows: np.ndarray

    @classmethod
    def none(cls) -> FurtherPictures:
        """No row has a second picture."""
        return cls(Pictures([]), np.empty(0, np.int64))

    @classmethod
    def of_albums(cls, albums: Sequence[Sequence[Picture]]) -> FurtherPictures:
        """From the further pictures of each row, in memory."""
        rows = np.repeat(np.arange(len(albums)), [len(album) for album in albums])
        return cls(Pictures([[picture for album in albums for picture in album]]), rows) if len(rows) else cls.none()

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, row: int) -> tuple[Any, ...]:
        """The further pictures of one row."""
        return tuple(self.pictures[i] for i in range(*self.span(row)))

    def span(self, row: int) -> tuple[int, int]:
        """Where those of one row begin and end."""
        if not len(self.rows):
            return 0, 0
        first, last = np.searchsorted(self.rows, [row, row + 1])
        return int(first), int(last)

    def select(self, rows: np.ndarray) -> FurtherPictures:
        """Those of some rows, which become rows 0, 1 ..."""
        if not len(self.rows):
            return self
        first, last = np.searchsorted(self.rows, rows), np.searchsorted(self.rows, rows + 1)
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.repeat(first, counts) + within
        return FurtherPictures(self.pictures.select(chosen), np.repeat(np.arange(len(rows)), counts))

    @staticmethod
    def concatenate(parts: Sequence[tuple[int, FurtherPictures]]) -> FurtherPictures:
        """Those of several parts, given with the number of rows of each part."""
        starts = np.cumsum([0, *(rows for rows, _ in parts)])
        if not any(len(part) for _, part in parts):
            return FurtherPictures.none()
        return FurtherPictures(
            Pictures.concatenate([part.pictures for _, part in parts]),
            np.concatenate([part.rows + start for start, (_, part) in zip(starts, parts, strict=False)]),
        )


def read_albums(
    dataset: Any, columns: Sequence[str], folder: Path | None, *, count: int
) -> tuple[Pictures, FurtherPictures]:
    """The first picture of each row, or None, and the further ones; nothing is decoded.

    Args:
        dataset: A `datasets.Dataset`.
        columns: Columns of pictures or of lists of pictures, in the order in which a row's pictures count.
        folder: Relative paths start here; None where the source has no folder.
        count: Rows of the dataset.
    """
    stores = [ArrowPictures(dataset, name, folder) for name in columns]
    if not stores:
        return Pictures([[None] * count]), FurtherPictures.none()
    if len(stores) == 1 and stores[0].rows is None:
        return Pictures(stores), FurtherPictures.none()
    row = np.concatenate([np.arange(count) if store.rows is None else store.rows for store in stores])
    there = np.flatnonzero(np.concatenate([store.present() for store in stores]))
    there = there[np.argsort(row[there], kind="stable")]  # by row, then by column, then by place in the list
    is_first = np.diff(row[there], prepend=-1) > 0
    pictures = Pictures([*stores, [None]])
    first = np.full(count, len(row))  # a row without a picture has the None at the end
    first[row[there[is_first]]] = there[is_first]
    further = there[~is_first]
    return pictures.select(first), FurtherPictures(pictures.select(further), row[further])
