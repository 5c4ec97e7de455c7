"""Another image that shows the same: the second view of a row, where views of one image are not enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dualtower.data.items import ItemDataset
from dualtower.types import Item

__all__ = ["Partners"]


class Partners:
    """Finds, for a row, another image of its group: a pure function of the row and of a random number.

    Args:
        items: The rows.
        codes: Group of each row, int64 ``[N]``, such as its product; a negative one is a group of its own.
    """

    def __init__(self, items: ItemDataset, codes: np.ndarray) -> None:
        self.items = items
        self.codes = np.where(codes < 0, -1 - np.arange(len(codes)), codes)
        self.order = np.argsort(self.codes, kind="stable")
        self.place = np.empty(len(codes), np.int64)
        self.place[self.order] = np.arange(len(codes))
        ordered = self.codes[self.order]
        self.first = np.searchsorted(ordered, self.codes)
        self.last = np.searchsorted(ordered, self.codes, side="right")

    def joined(self, item: Item, row: int, draw: int) -> Item:
        """The row with its partner; arguments as in `of`."""
        return replace(item, partner=self.of(item, row, draw))

    def of(self, item: Item, row: int, draw: int) -> Item:
        """Another image of a row's group: of another row where there is one, else another image of the row itself.

        Args:
            item: The row as it is visited.
            row: Its number.
            draw: A number from 0 to 2^31 that chooses, the same as chose the visit's own image.
        """
        first, count = int(self.first[row]), int(self.last[row] - self.first[row])
        chosen = draw // 7919  # other digits than those that chose the caption and the image
        if count > 1:
            other = (int(self.place[row]) - first + 1 + chosen % (count - 1)) % count
            return self.items.visit(int(self.order[first + other]), chosen // count)
        images = self.items.image_count(row)
        if images < 2:
            return item
        return self.items.visit_image(row, (item.image_number + 1 + chosen % (images - 1)) % images)
