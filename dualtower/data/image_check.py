"""Which pictures can be decoded: looked at once, by all processes together, and remembered until a picture changes.

What was found is kept in ``~/.cache/dualtower/checked`` (or under ``XDG_CACHE_HOME``), one small file for each set of
pictures, whose name is a hash of where they lie, their sizes and their times of modification.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import closing
from pathlib import Path

import numpy as np

from dualtower.data.pictures import CHECKED_AT_ONCE, Pictures, broken_pictures
from dualtower.data.products import Products
from dualtower.errors import BrokenImage
from dualtower.files import write_text_atomically
from dualtower.sharding import combine, is_sharded, shard, world_size

__all__ = ["broken_images"]

logger = logging.getLogger(__name__)


def broken_images(
    products: Products, where: str, *, stop_early: bool = False, remember: bool = False
) -> list[tuple[int, BrokenImage]]:
    """Decode every picture; return row and error of each that is missing or cannot be decoded, first pictures first.

    Where processes share their work (`dualtower.sharding`), each decodes its shard and all return the same.

    Args:
        products: N rows, of which some may have further pictures.
        where: File or dataset, for messages.
        stop_early: One broken picture is enough.
        remember: Take what was found before, if no picture has changed since, and keep what is found now.
    """
    further = products.further
    pictures = Pictures.concatenate([products.pictures, further.pictures])
    rows = np.concatenate([np.arange(len(products)), further.rows]).astype(np.int64)
    numbers = np.arange(len(further)) - np.searchsorted(further.rows, further.rows) + 2
    names = products.ids + [f"{products.ids[r]}, picture {n}" for r, n in zip(further.rows, numbers, strict=True)]
    stamp = _Stamp(pictures) if remember else None
    known = stamp.read() if stamp is not None else None
    if _everywhere(known is not None):
        assert known is not None
        broken = _broken(pictures, names, known, where=where)  # another version of Pillow may read them
    else:
        broken = _broken(pictures, names, _shard(len(names)), where=where, stop_early=stop_early)
        if stamp is not None and not (stop_early and broken):  # only what has been looked at to the end
            stamp.write(np.array(list(broken), np.int64))
    return [(int(rows[i]), error) for i, error in broken.items()]


def _broken(
    pictures: Pictures, names: list[str], chosen: np.ndarray, *, where: str, stop_early: bool = False
) -> dict[int, BrokenImage]:
    """Position, ascending, and error of each picture that a process cannot decode, each looking at those it chose."""
    flags, errors = np.zeros(len(names), np.int64), {}
    with closing(broken_pictures(pictures.select(chosen), [names[i] for i in chosen], where=where)) as found:
        for place, error in found:
            flags[chosen[place]], errors[int(chosen[place])] = 1, error
            if stop_early:
                break
    combine(flags)
    all_found = np.flatnonzero(flags)
    other = np.array([i for i in all_found if i not in errors], np.int64)  # found by others; here for the reasons
    for place, error in broken_pictures(pictures.select(other), [names[i] for i in other], where=where):
        errors[int(other[place])] = error
    unseen = "could not be decoded by another process"
    return {i: errors.get(i) or BrokenImage(where, names[i], unseen) for i in all_found.tolist()}


def _shard(count: int) -> np.ndarray:
    """Positions of the pictures that this process looks at."""
    starts = shard(range(0, count, CHECKED_AT_ONCE))
    return np.concatenate([np.empty(0, np.int64), *(np.arange(i, min(i + CHECKED_AT_ONCE, count)) for i in starts)])


def _everywhere(true: bool) -> bool:
    """Whether it holds in every process that shares the work: they must all look, or none."""
    count = np.array([int(true)])
    combine(count)
    return int(count[0]) == (world_size() if is_sharded() else 1)


class _Stamp:
    """What is known of a set of pictures."""

    def __init__(self, pictures: Pictures) -> None:
        state = hashlib.blake2b(digest_size=16)
        for part in pictures.identity():
            state.update(part)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = cache / "dualtower" / "checked" / f"{state.hexdigest()}.json"
        self.count = len(pictures)

    def read(self) -> np.ndarray | None:
        """Positions of the broken pictures, or None where nothing is known."""
        try:
            known = json.loads(self.path.read_text())
            broken = np.array(known["broken"], np.int64)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return broken if known.get("pictures") == self.count else None

    def write(self, broken: np.ndarray) -> None:
        """Keep it, if the cache can be written: it only saves time."""
        try:
            write_text_atomically(self.path, json.dumps({"pictures": self.count, "broken": broken.tolist()}))
        except OSError as error:
            logger.info("cannot remember that the pictures were checked: %s", error)
