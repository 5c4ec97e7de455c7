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
    found = stamp.read() if stamp is not None else None
    if not _everywhere(found is not None):
        found = _look(pictures, names, stop_early=stop_early)
        if stamp is not None and not (stop_early and len(found)):  # only what has been looked at to the end
            stamp.write(found)
    assert found is not None
    again = dict(broken_pictures(pictures.select(found), [names[i] for i in found], where=where))  # for the reasons
    unseen = "could not be decoded by another process"
    return [(int(rows[i]), again.get(n) or BrokenImage(where, names[i], unseen)) for n, i in enumerate(found)]


def _look(pictures: Pictures, names: list[str], *, stop_early: bool) -> np.ndarray:
    """Positions of the pictures that cannot be decoded, ascending."""
    tasks = shard([np.arange(i, min(i + CHECKED_AT_ONCE, len(names))) for i in range(0, len(names), CHECKED_AT_ONCE)])
    mine = np.concatenate([np.empty(0, np.int64), *tasks])
    flags = np.zeros(len(names), np.int64)
    with closing(broken_pictures(pictures.select(mine), [names[i] for i in mine], where="")) as found:
        for place, _ in found:
            flags[mine[place]] = 1
            if stop_early:
                break
    combine(flags)
    return np.flatnonzero(flags)


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
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"pictures": self.count, "broken": broken.tolist()}))
            partial.replace(self.path)
        except OSError as error:
            logger.info("cannot remember that the pictures were checked: %s", error)
