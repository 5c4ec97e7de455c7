"""Run by `test_batches` with a tiny /dev/shm: ask for a cache, then read a batch through a loader worker."""

from __future__ import annotations

import logging
import sys

from test_batches import SETTINGS, png

from dualtower.data.batches import Collator, PixelCache, training_loader
from dualtower.data.items import ItemDataset
from dualtower.data.sampling import BatchSampler
from dualtower.types import Item


def main(rows: int, in_transit: int) -> None:
    logging.basicConfig(level=logging.WARNING)
    photo = png(3)
    items = ItemDataset.from_rows([Item(str(i), str(i), ("a title",), photo) for i in range(rows)])
    cache = PixelCache.if_there_is_room(items, SETTINGS, in_transit=in_transit)
    plan = BatchSampler(items, batch_size=8)
    batch = next(iter(training_loader(items, plan, Collator(None, SETTINGS, cache=cache), workers=1)))
    print("none" if cache is None else "cache", len(batch.pixels))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
