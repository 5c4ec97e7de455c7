"""Files of rows, made once and kept for every process and every later run.

They lie in ``~/.cache/dualtower/rows`` (or under ``XDG_CACHE_HOME``), each named by a hash of what it was made from:
name, size and time of modification of every file of the source, and what the data card says of its columns. They hold
ids, identities, texts and attributes; images stay where they are. A file ends with the hash and a checksum, so that a
damaged one, or another one in its place, is made anew. One that nobody has opened for a month goes when another one
is made.
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from dualtower.data.rows.blocks import Block
from dualtower.data.rows.file import RowFile
from dualtower.data.rows.writer import write_rows
from dualtower.errors import SourceError, system_message
from dualtower.files import atomic_write

__all__ = ["cache_folder", "row_file"]

logger = logging.getLogger(__name__)

TRAILER = struct.Struct("<8s32sI")
MAGIC = b"dt-rows\0"
UNUSED_SECONDS = 30 * 24 * 3600
AT_ONCE = 1 << 22  # bytes per step of a checksum


def cache_folder() -> Path:
    """Where what was found out about catalogs is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualtower"


def row_file(key: str | None, read: Callable[[], Iterator[Block]], *, where: str) -> RowFile:
    """The file of this key, or a new one.

    Where the cache cannot be written, the rows go into a temporary file, which ends with this process.

    Args:
        key: 32 hex digits that change whenever the rows do; None: nobody could know the file again.
        read: Reads the rows of the source from the beginning, in blocks.
        where: The source and its split, for messages.

    Raises:
        SourceError: There is no room for the rows at all, or a text of theirs is no Unicode.
    """
    folder = cache_folder() / "rows"
    if key is not None:
        path = folder / f"{key}.arrow"
        if (found := _kept(path, key)) is not None:
            return found
        try:
            made = _made(path, key, read, where)
            _remove_unused(folder)
            return made
        except _Refused as error:
            logger.warning(
                "cannot keep the rows of %s in %s (%s): they go into a temporary file, and are read anew every time",
                where, folder, str(error),
            )  # fmt: skip
    handle, name = tempfile.mkstemp(prefix="dualtower-rows-", suffix=".arrow")
    os.close(handle)
    try:
        made = _made(Path(name), key or "", read, where)
    except _Refused as error:
        _remove(Path(name), os.getpid())
        raise SourceError(
            f"no room for the rows of {where}: {error}; set XDG_CACHE_HOME or TMPDIR to a folder that can be written"
        ) from error
    weakref.finalize(made, _remove, Path(name), os.getpid())
    return made


class _Refused(Exception):
    """The file system did not take a file."""


class _Unreadable(Exception):
    """The source, not the new file, is at fault."""

    def __init__(self, error: OSError) -> None:
        self.error = error


def _kept(path: Path, key: str) -> RowFile | None:
    """The file of this key, if it is there and whole."""
    try:
        size = path.stat().st_size - TRAILER.size
        with path.open("rb") as stream:
            checksum = _checksum(stream, size)
            magic, of, noted = TRAILER.unpack(stream.read())
        if (magic, of, noted) == (MAGIC, key.encode(), checksum):
            with suppress(OSError):
                os.utime(path)  # that it is in use
            return RowFile(path)
    except OSError:  # not there, or not to be read: whoever makes it anew says why it cannot be kept
        return None
    except (ValueError, KeyError, struct.error, pa.ArrowException) as error:
        logger.debug("%s: %s", path, error)
    logger.warning("%s is damaged; it is made anew", path)
    return None


def _made(path: Path, key: str, read: Callable[[], Iterator[Block]], where: str) -> RowFile:
    try:
        with atomic_write(path) as partial:
            write_rows(partial, lambda: _blocks(read))
            with partial.open("rb") as stream:
                checksum = _checksum(stream, partial.stat().st_size)
            with partial.open("ab") as stream:
                stream.write(TRAILER.pack(MAGIC, key.encode(), checksum))
    except _Unreadable as unreadable:
        raise unreadable.error from None
    except UnicodeEncodeError as error:
        raise SourceError(f"{where}: a text holds half a character (a lone surrogate): {error}") from error
    except OSError as error:
        raise _Refused(system_message(error)) from error
    return RowFile(path)


def _blocks(read: Callable[[], Iterator[Block]]) -> Iterator[Block]:
    try:
        yield from read()
    except OSError as error:
        raise _Unreadable(error) from error


def _checksum(stream: Any, size: int) -> int:
    """The CRC-32 of the next `size` bytes."""
    found = 0
    while size > 0 and (part := stream.read(min(AT_ONCE, size))):
        found, size = zlib.crc32(part, found), size - len(part)
    return found


def _remove_unused(folder: Path) -> None:
    for file in folder.glob("*.arrow"):
        with suppress(OSError):  # another process may have been quicker
            if time.time() - file.stat().st_mtime > UNUSED_SECONDS:
                file.unlink()


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a worker that was forked
        with suppress(OSError):
            path.unlink()
