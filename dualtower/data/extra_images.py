"""Rows with several images: each row's first one, and the further ones of the few rows that have more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.data.image_columns import ArrowImages, ImageColumn, StoredImage

__all__ = ["ExtraImages", "read_image_lists"]


@dataclass(frozen=True, eq=False)
class ExtraImages:
    """The second, third ... image of those rows that have several; rows with a single one cost nothing.

    Attributes:
        images: M images, in the order of the rows and of the images within a row; none of them is None.
        rows: Row of each, ascending, int64 ``[M]``.
    """

    images: ImageColumn
    rows: np.ndarray

    @classmethod
    def none(cls) -> ExtraImages:
        """No row has a second image."""
        return cls(ImageColumn([]), np.empty(0, np.int64))

    @classmethod
    def of_lists(cls, albums: Sequence[Sequence[StoredImage]]) -> ExtraImages:
        """From the further images of each row, in memory."""
        rows = np.repeat(np.arange(len(albums)), [len(album) for album in albums])
        return cls(ImageColumn([[image for album in albums for image in album]]), rows) if len(rows) else cls.none()

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, row: int) -> tuple[Any, ...]:
        """The further images of one row."""
        return tuple(self.images[i] for i in range(*self.span(row)))

    def span(self, row: int) -> tuple[int, int]:
        """Where those of one row begin and end."""
        if not len(self.rows):
            return 0, 0
        first, last = np.searchsorted(self.rows, [row, row + 1])
        return int(first), int(last)

    def select(self, rows: np.ndarray) -> ExtraImages:
        """Those of some rows, which become rows 0, 1 ..."""
        if not len(self.rows):
            return self
        first, last = np.searchsorted(self.rows, rows), np.searchsorted(self.rows, rows + 1)
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.repeat(first, counts) + within
        return ExtraImages(self.images.select(chosen), np.repeat(np.arange(len(rows)), counts))

    @staticmethod
    def concatenate(parts: Sequence[tuple[int, ExtraImages]]) -> ExtraImages:
        """Those of several parts, given with the number of rows of each part."""
        starts = np.cumsum([0, *(rows for rows, _ in parts)])
        if not any(len(part) for _, part in parts):
            return ExtraImages.none()
        return ExtraImages(
            ImageColumn.concatenate([part.images for _, part in parts]),
            np.concatenate([part.rows + start for start, (_, part) in zip(starts, parts, strict=False)]),
        )


def read_image_lists(
    dataset: Any, columns: Sequence[str], folder: Path | None, *, count: int
) -> tuple[ImageColumn, ExtraImages]:
    """The first image of each row, or None, and the further ones; nothing is decoded.

    Args:
        dataset: A `datasets.Dataset`.
        columns: Columns of images or of lists of images, in the order in which a row's images count.
        folder: Relative paths start here; None where the source has no folder.
        count: Rows of the dataset.
    """
    stores = [ArrowImages(dataset, name, folder) for name in columns]
    if not stores:
        return ImageColumn([[None] * count]), ExtraImages.none()
    if len(stores) == 1 and stores[0].rows is None:
        return ImageColumn(stores), ExtraImages.none()
    row = np.concatenate([np.arange(count) if store.rows is None else store.rows for store in stores])
    there = np.flatnonzero(np.concatenate([store.present() for store in stores]))
    there = there[np.argsort(row[there], kind="stable")]  # by row, then by column, then by place in the list
    is_first = np.diff(row[there], prepend=-1) > 0
    images = ImageColumn([*stores, [None]])
    first = np.full(count, len(row))  # a row without an image has the None at the end
    first[row[there[is_first]]] = there[is_first]
    extra_images = there[~is_first]
    return images.select(first), ExtraImages(images.select(extra_images), row[extra_images])
