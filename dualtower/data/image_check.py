"""Which images can be decoded: looked at once, by all processes together, and remembered until an image changes.

What was found is kept in ``~/.cache/dualtower/checked`` (or under ``XDG_CACHE_HOME``), one small file for each set of
images, whose name is a hash of where they lie, their sizes and their times of modification.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from dualtower.data.image_columns import CHECKED_AT_ONCE, ImageColumn, undecodable_images
from dualtower.data.items import ItemDataset
from dualtower.data.rows.cache import cache_folder
from dualtower.errors import BrokenImage
from dualtower.files import write_text_atomically
from dualtower.sharding import combine, is_sharded, shard, world_size

__all__ = ["broken_images"]

logger = logging.getLogger(__name__)

BLOCK = 1 << 16


def broken_images(
    items: ItemDataset, where: str, *, stop_early: bool = False, remember: bool = False
) -> list[tuple[int, BrokenImage]]:
    """Decode every image; return row and error of each that is missing or cannot be decoded, first images first.

    Where processes share their work (`dualtower.sharding`), each decodes its shard and all return the same.

    Args:
        items: N rows, of which some may have further images.
        where: File or dataset, for messages.
        stop_early: One broken image is enough.
        remember: Take what was found before, if no image has changed since, and keep what is found now.
    """
    extra_images = items.extra_images
    images = ImageColumn.concatenate([items.images, extra_images.images])
    rows = np.concatenate([np.arange(len(items)), extra_images.rows]).astype(np.int64)
    numbers = np.arange(len(extra_images)) - np.searchsorted(extra_images.rows, extra_images.rows) + 2
    numbers = np.concatenate([np.ones(len(items), np.int32), numbers.astype(np.int32)])
    names = _Names(items.columns.ids, rows, numbers)
    stamp = _Stamp(images) if remember else None
    known = stamp.read() if stamp is not None else None
    if _everywhere(known is not None):
        assert known is not None
        broken = _broken(images, names, known, where=where)  # another version of Pillow may read them
    else:
        broken = _broken(images, names, _shard(len(names)), where=where, stop_early=stop_early)
        if stamp is not None and not (stop_early and broken):  # only what has been looked at to the end
            stamp.write(np.array(list(broken), np.int64))
    return [(int(rows[i]), error) for i, error in broken.items()]


def _broken(
    images: ImageColumn, names: _Names, chosen: np.ndarray, *, where: str, stop_early: bool = False
) -> dict[int, BrokenImage]:
    """Position, ascending, and error of each image that a process cannot decode, each looking at those it chose."""
    flags, errors = np.zeros(len(names), np.int64), {}
    with closing(_undecodable(images, names, chosen, where=where)) as found:
        for place, error in found:
            flags[place], errors[place] = 1, error
            if stop_early:
                break
    combine(flags)
    all_found = np.flatnonzero(flags)
    other = np.array([i for i in all_found if i not in errors], np.int64)  # found by others; here for the reasons
    errors |= dict(_undecodable(images, names, other, where=where))
    unseen = "could not be decoded by another process"
    return {i: errors.get(i) or BrokenImage(where, names[i], unseen) for i in all_found.tolist()}


def _undecodable(
    images: ImageColumn, names: _Names, chosen: np.ndarray, *, where: str
) -> Generator[tuple[int, BrokenImage], None, None]:
    """Position and error of each of the chosen images that cannot be decoded; memory for a block of them at a time."""
    for start in range(0, len(chosen), BLOCK):
        some = chosen[start : start + BLOCK]
        with closing(undecodable_images(images.select(some), names.select(some), where=where)) as found:
            for place, error in found:
                yield int(some[place]), error


def _shard(count: int) -> np.ndarray:
    """Positions of the images that this process looks at."""
    starts = shard(range(0, count, CHECKED_AT_ONCE))
    return np.concatenate([np.empty(0, np.int64), *(np.arange(i, min(i + CHECKED_AT_ONCE, count)) for i in starts)])


def _everywhere(true: bool) -> bool:
    """Whether it holds in every process that shares the work: they must all look, or none."""
    count = np.array([int(true)])
    combine(count)
    return int(count[0]) == (world_size() if is_sharded() else 1)


class _Names(Sequence[str]):
    """What messages call each image: the id of its row, and which of its images it is.

    Args:
        ids: Ids of the rows.
        rows: Row of each image, int64 ``[M]``.
        numbers: Which of its row it is, from 1, int64 ``[M]``.
    """

    def __init__(self, ids: Sequence[str], rows: np.ndarray, numbers: np.ndarray) -> None:
        self.ids, self.rows, self.numbers = ids, rows, numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        row_id, number = self.ids[int(self.rows[place])], int(self.numbers[place])
        return row_id if number == 1 else f"{row_id}, image {number}"

    def select(self, places: np.ndarray) -> _Names:
        """The names of some images."""
        return _Names(self.ids, self.rows[places], self.numbers[places])


class _Stamp:
    """What is known of a set of images."""

    def __init__(self, images: ImageColumn) -> None:
        state = hashlib.blake2b(digest_size=16)
        for part in images.identity():
            state.update(part)
        self.path = cache_folder() / "checked" / f"{state.hexdigest()}.json"
        self.count = len(images)

    def read(self) -> np.ndarray | None:
        """Positions of the broken images, or None where nothing is known."""
        try:
            known = json.loads(self.path.read_text())
            broken = np.array(known["broken"], np.int64)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return broken if known.get("images") == self.count else None

    def write(self, broken: np.ndarray) -> None:
        """Keep it, if the cache can be written: it only saves time."""
        try:
            write_text_atomically(self.path, json.dumps({"images": self.count, "broken": broken.tolist()}))
        except OSError as error:
            logger.info("cannot remember that the images were checked: %s", error)
