"""Files that are either old or new, never half: written beside their place, synced, and renamed into it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = ["atomic_write", "sync", "text_file_atomically", "write_bytes_atomically", "write_text_atomically"]

_SUFFIX = ".dualtower.partial"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of a new file, to be written in the block, which takes the place of `path` when the block ends.

    After an error, or a kill at any moment, `path` is as it was before. Several processes and threads may write the
    same file at the same time: each writes one of its own, and the last one to finish wins. What killed writers have
    left in the folder is removed.

    Args:
        path: The file; its folder is made where it is missing.

    Raises:
        OSError: The file system refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".*{_SUFFIX}"):
        _remove_if_dead(left)
    partial, held = _new_beside(path)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        held.close()


@contextmanager
def text_file_atomically(path: Path) -> Iterator[TextIO]:
    """Open a text file to be written piece by piece; it appears whole when the block ends, and not after an error."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        yield stream


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file that is either old or new, never half; makes its folder."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either old or new, never half; makes its folder."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_beside(path: Path) -> tuple[Path, FileIO]:
    """An empty file of a name that nobody else has, and a lock on it, which dies with this process."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
        held = partial.open("xb", buffering=0)
        with suppress(OSError):  # a file system without locks: there, nothing is ever taken for a dead writer's
            _lock(held, wait=True)
        if partial.exists():
            return partial, held
        held.close()  # another writer took it for a dead one's, before it was locked


def _remove_if_dead(partial: Path) -> None:
    """Remove the file of a writer that was killed: its lock died with it."""
    with suppress(OSError), partial.open("rb") as file:
        _lock(file, wait=False)
        partial.unlink(missing_ok=True)


def _lock(file: FileIO | BinaryIO, *, wait: bool) -> None:
    """Lock a file until it is closed.

    Raises:
        OSError: Another has locked it and is not waited for, or there are no locks on this file system, or on this
            system, such as Windows.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no such locks") from error
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
