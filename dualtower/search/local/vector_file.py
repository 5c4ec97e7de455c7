"""Vectors of a catalog in append-only files: one file per kind, one slot per row, float16."""

from __future__ import annotations

import os
import zlib
from io import FileIO
from pathlib import Path

import numpy as np

from dualtower.errors import CatalogError
from dualtower.files import sync

__all__ = ["VectorFile", "VectorReader", "crcs_of"]

SMALL = 64 * 2**20
"""Bytes of a file up to which it stays mapped."""
FEW_MAPPED, FEW_READ = 20_000, 2000
"""So many scattered vectors of a small file, or of a large one, are looked at in a few milliseconds."""


class VectorFile:
    """Slots of `dim` float16 numbers.

    Nothing here knows which slots are valid: the database does, and it commits only after `write` has returned. What a
    killed writer left behind its last commit is written over by the next one.

    Args:
        path: The file; made where it is missing.
        dim: Numbers per slot.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim = path, dim
        self.slot_bytes = 2 * dim

    def write(self, first: int, vectors: np.ndarray) -> None:
        """Write ``[N, D]`` vectors from slot `first` on, and wait until they are on the disk.

        Raises:
            CatalogError: The file system refused, or the file has lost slots before `first`.
        """
        data = np.ascontiguousarray(vectors, np.float16).tobytes()
        is_new = not self.path.exists()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                held = os.fstat(descriptor).st_size // self.slot_bytes
                if held < first:  # the system would fill the gap with zeros, which are vectors like others
                    raise CatalogError(too_short(self.path, held, first))
                written = 0
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], first * self.slot_bytes + written)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                sync(self.path.parent)
        except OSError as error:
            raise CatalogError(
                f"cannot write {self.path}: {error}. What was accepted before is intact; make room and try again"
            ) from error

    def lengthen(self, slots: int) -> int:
        """Fill up a file that has lost slots with zeros, which no checksum fits; returns how many were missing."""
        held = self.path.stat().st_size // self.slot_bytes if self.path.exists() else 0
        missing = max(0, slots - held)
        if missing:
            with self.path.open("ab") as file:
                file.truncate(slots * self.slot_bytes)
                os.fsync(file.fileno())
            sync(self.path.parent)
        return missing

    def open(self, slots: int) -> VectorReader:
        """Open the first `slots` slots for reading.

        Raises:
            CatalogError: The file is shorter than that.
        """
        return VectorReader(self.path, self.dim, slots)


class VectorReader:
    """The first `slots` slots of a file, held open: a file that a compaction has removed can still be read.

    Those of a large file are read where they are wanted: pages that stay mapped would count as memory of the process
    for ever.

    Args:
        path: The file.
        dim: Numbers per slot.
        slots: How many may be read.

    Raises:
        CatalogError: The file is shorter than that.
    """

    def __init__(self, path: Path, dim: int, slots: int) -> None:
        self.dim, self.slots, self.slot_bytes = dim, slots, 2 * dim
        self._file: FileIO | None
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:  # and no request beforehand: a compaction may remove it between the two
            self._file = None
        held = os.fstat(self._file.fileno()).st_size // self.slot_bytes if self._file else 0
        if held < slots:
            raise CatalogError(too_short(path, held, slots))
        self._mapped = self._map() if 0 < slots * self.slot_bytes <= SMALL else None

    @property
    def few(self) -> int:
        """So many vectors can be looked at anywhere in the file while somebody waits."""
        return FEW_READ if self._mapped is None else FEW_MAPPED

    def gather(self, slots: np.ndarray) -> np.ndarray:
        """Vectors of some slots, float16 ``[len(slots), D]``."""
        if not len(slots):
            return np.empty((0, self.dim), np.float16)
        if self._mapped is not None:
            return np.take(self._mapped, slots, axis=0)
        assert self._file is not None
        if (np.diff(slots) == 1).all():  # as the newest rows are
            return self.run(int(slots[0]), int(slots[-1]) + 1)
        if len(slots) <= FEW_READ:
            number, size = self._file.fileno(), self.slot_bytes
            content = b"".join([os.pread(number, size, slot * size) for slot in slots.tolist()])
            if len(content) < len(slots) * size:  # the system may return fewer bytes than it is asked for
                content = b"".join(self._read(slot, 1) for slot in slots.tolist())
            return np.frombuffer(content, np.float16).reshape(len(slots), self.dim)
        return np.take(self._map(), slots, axis=0)  # the map is let go of when this returns

    def run(self, start: int, stop: int) -> np.ndarray:
        """Vectors of the slots from `start` up to `stop`, float16 ``[stop - start, D]``."""
        return np.frombuffer(self._read(start, stop - start), np.float16).reshape(stop - start, self.dim)

    def _map(self) -> np.ndarray:
        assert self._file is not None
        return np.asarray(np.memmap(self._file, np.float16, "r", shape=(self.slots, self.dim)))

    def _read(self, first: int, count: int) -> bytes:
        """Bytes of `count` slots; the system may return fewer than it is asked for."""
        wanted, parts = count * self.slot_bytes, []
        while wanted:
            assert self._file is not None
            part = os.pread(self._file.fileno(), wanted, (first + count) * self.slot_bytes - wanted)
            if not part:
                raise CatalogError(f"a vector file of this catalog ended before slot {first + count}")
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)


def too_short(path: Path, held: int, slots: int) -> str:
    """What to say of a vector file that has lost some of its slots."""
    return (
        f"{path} holds {held} of {slots} vectors. Restore it from a backup, or make them anew from titles and "
        f"images: `dualtower repair {path.parent.parent}`"
    )


def crcs_of(vectors: np.ndarray) -> list[int]:
    """Checksums of the float16 bytes of vectors ``[N, D]``."""
    held, size = np.ascontiguousarray(vectors, np.float16).tobytes(), 2 * vectors.shape[1]
    return [zlib.crc32(held[start : start + size]) for start in range(0, len(held), size)]
