"""Images to look for damage in, or to know clean ones by: from a catalog, a data card, or a bare folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dualtower.data.cards import load_card
from dualtower.data.items import ItemDataset
from dualtower.data.loading import load_items
from dualtower.data.transforms.images import ImageSettings, open_image, to_pixels
from dualtower.errors import BrokenImage, SourceError
from dualtower.search.local.store import LocalStore
from dualtower.search.store import store_exists

__all__ = ["Photos", "decoded", "open_photos"]


@dataclass(frozen=True, eq=False)
class Photos:
    """Images with ids, undecoded.

    Attributes:
        name: Where they come from, for reports.
        ids: Id of each, ``[N]``; in a bare folder the path below it.
        products: Code of each image's product, int64 ``[N]``; in a bare folder each is its own.
        images: Encoded bytes, paths or PIL images, ``[N]``.
    """

    name: str
    ids: Sequence[str]
    products: np.ndarray
    images: Sequence[Any]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray) -> Photos:
        """The images of these numbers, in their order."""
        numbers = rows.tolist()
        return Photos(self.name, [self.ids[n] for n in numbers], self.products[rows], [self.images[n] for n in numbers])

    @classmethod
    def of_items(cls, items: ItemDataset) -> Photos:
        """The first image of each row that has one."""
        rows = [number for number, image in enumerate(items.images) if image is not None]
        ids = items.ids
        images = [items.images[row] for row in rows]
        return cls(f"{items.card} ({items.split})", [ids[row] for row in rows], items.codes[rows], images)

    @classmethod
    def of_catalog(cls, store: LocalStore) -> Photos:
        """The images that a catalog shows; large ones are stored there as smaller copies."""
        view = store.searcher.views.current()
        slots = np.flatnonzero(view.live)
        rows = store.catalog.at(view.numbers[slots].tolist())
        kept, ids, images = [], [], []
        for slot in slots.tolist():
            row = rows.get(int(view.numbers[slot]))
            if row is not None and (image := store.image(row.id)) is not None:
                kept.append(slot)
                ids.append(row.id)
                images.append(image)
        return cls(str(store.catalog.folder), ids, view.product_codes[kept], images)

    @classmethod
    def of_folder(cls, folder: Path) -> Photos:
        """All images below a folder.

        Raises:
            SourceError: There is none.
        """
        known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
        if not paths:
            raise SourceError(f"no image below {folder}; name a folder of photos, a catalog or a data card")
        return cls(str(folder), [str(path.relative_to(folder)) for path in paths], np.arange(len(paths)), paths)


def open_photos(where: str, *, split: str = "all", source: str | Path | None = None) -> Photos:
    """Open a catalog, a folder of photos, or a split of a data card.

    Args:
        where: Folder of a catalog, any other folder, or path or name of a data card.
        split: Split of the card.
        source: To read in place of the card's own source.

    Raises:
        SourceError: There are no images.
        CardError: There is no such folder, and no such card.
        UnknownSplit: The card has no such split.
    """
    if Path(where).is_dir():
        found = Photos.of_catalog(LocalStore(where)) if store_exists(where) else Photos.of_folder(Path(where))
    else:
        found = Photos.of_items(load_items(load_card(where), split, source=source, check_images=False))
    if not len(found):
        raise SourceError(f"{found.name} has no images, and damage is looked for in images")
    return found


def decoded(
    photos: Photos, settings: ImageSettings, *, at_once: int = 1024
) -> Iterator[tuple[np.ndarray, torch.Tensor, list[BrokenImage]]]:
    """Decode images in portions of bounded memory.

    Yields:
        Numbers of the images that can be decoded, int64 ``[B]``; their pixels, uint8 ``[B, 3, H, W]``; and what is
        wrong with the others.
    """
    for start in range(0, len(photos), at_once):
        good, pixels, broken = [], [], []
        for number in range(start, min(start + at_once, len(photos))):
            try:
                opened = open_image(photos.images[number], where=photos.name, row=photos.ids[number])
            except BrokenImage as error:
                broken.append(error)
                continue
            good.append(number)
            pixels.append(to_pixels(opened, settings))
        shape = (0, 3, settings.height, settings.width)
        stacked = np.stack(pixels) if pixels else np.empty(shape, np.uint8)
        yield np.array(good, np.int64), torch.from_numpy(stacked), broken
