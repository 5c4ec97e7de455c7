"""Rows of one split of a source in a memory-mapped Arrow file, made once and read by every process.

The files lie in ``~/.cache/dualtower/rows`` (or under ``XDG_CACHE_HOME``), each named by a hash of what it was made
from: name, size and time of modification of every file of the source, and what the data card says of its columns. They
hold ids, identities, texts and attributes; pictures stay where they are. A file ends with the hash and a checksum, so
that a damaged one, or another one in its place, is made anew.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import tempfile
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualtower.data.row_table import ID, PRODUCT_ID, TEXTS, attribute, codes_of, gathered
from dualtower.data.rows import Block
from dualtower.errors import SourceError, system_message
from dualtower.files import atomic_write

__all__ = ["HASHED", "RowFile", "cache_folder", "row_file"]

logger = logging.getLogger(__name__)

HASHED, PROBLEM = "hashed", "problem"
TEXT = pa.large_string()
TYPES = {"none": TEXT, "text": TEXT, "json": TEXT, "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
KINDS = {str: "text", int: "int", float: "float", bool: "bool"}
TRAILER = struct.Struct("<8s32sI")
MAGIC = b"dt-rows\0"
AT_ONCE = 1 << 22  # bytes per step of a checksum


class RowFile:
    """The rows of one split of a source, good or bad, on disk; it pickles as the name of its file.

    Attributes:
        attributes: Names of the attributes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = pa.memory_map(str(path)).read_buffer()
        table = pa.ipc.open_stream(pa.BufferReader(whole)).read_all()
        about = json.loads(table.schema.metadata[b"dualtower"])
        self.attributes: tuple[str, ...] = tuple(about["attributes"])
        self._json = frozenset(about["json"])
        self._columns = {name: table.column(name) for name in table.column_names}
        self._starts = np.cumsum([0, *(len(chunk) for chunk in table.column(ID).chunks)])
        self._firsts: list[int] = self._starts[:-1].tolist()
        said = [ID, PRODUCT_ID, TEXTS, *map(attribute, self.attributes)]
        self._chunks = [{name: table.column(name).chunk(i) for name in said} for i in range(len(self._firsts))]

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def value(self, column: str, row: int) -> Any:
        """One value; None where there is no such column."""
        data = self._columns.get(column)
        return None if data is None else self._told(column, [data[row].as_py()])[0]

    def row(self, row: int) -> dict[str, Any]:
        """Column -> value of one row."""
        chunk = bisect_right(self._firsts, row) - 1
        place = row - self._firsts[chunk]
        told = {name: values[place].as_py() for name, values in self._chunks[chunk].items()}
        told[TEXTS] = tuple(told[TEXTS])
        for name in self._json:
            told[name] = None if told[name] is None else json.loads(told[name])
        return told

    def values(self, column: str, rows: np.ndarray) -> list[Any]:
        """The values of some rows."""
        data = self._columns.get(column)
        if data is None or not len(rows):
            return [None] * len(rows)
        first = int(rows[0])
        if np.array_equal(rows, np.arange(first, first + len(rows))):
            return self._told(column, data.slice(first, len(rows)).to_pylist())
        read = gathered(rows, self._starts, lambda chunk, places: data.chunk(chunk).take(pa.array(places)).to_pylist())
        return self._told(column, read)

    def codes(self, column: str) -> np.ndarray:
        """`product_code` of the ids, of the product ids or of what the split goes by, int64 ``[N]``."""
        codes: np.ndarray = self._columns[_code(column)].to_numpy()
        return codes

    def problems(self) -> dict[int, str]:
        """Row -> what is wrong with it, whatever other rows there are."""
        rows = np.flatnonzero(self._columns[PROBLEM].is_valid().to_numpy())
        return dict(zip(rows.tolist(), self.values(PROBLEM, rows), strict=True))

    def _told(self, column: str, values: list[Any]) -> list[Any]:
        if column == TEXTS:
            return list(map(tuple, values))
        if column in self._json:
            return [None if value is None else json.loads(value) for value in values]
        return values


def cache_folder() -> Path:
    """Where what was found out about catalogues is kept."""
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
            return _made(path, key, read, where)
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


class _Contradicted(Exception):
    """A later block has values of another kind than the schema, which is known only now."""


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
            kinds: dict[str, str] = {}
            try:
                _write(partial, _blocks(read), kinds)
            except _Contradicted:  # once at most: the kinds of all blocks are known now
                _write(partial, _blocks(read), kinds)
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


def _write(path: Path, blocks: Iterator[Block], kinds: dict[str, str]) -> None:
    first, known = next(blocks), bool(kinds)
    if not known:
        _widen(kinds, first)
    schema = _schema(first, kinds)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for block in chain([first], blocks):
            if not known and _widen(kinds, block):
                for later in blocks:
                    _widen(kinds, later)
                raise _Contradicted
            writer.write_batch(_batch(block, schema, kinds))


def _schema(block: Block, kinds: Mapping[str, str]) -> pa.Schema:
    fields = [(ID, TEXT), (PRODUCT_ID, TEXT), (TEXTS, pa.list_(TEXT))]
    fields += [(attribute(name), TYPES[kind]) for name, kind in kinds.items()]
    fields += [(_code(ID), pa.int64()), (_code(PRODUCT_ID), pa.int64()), (PROBLEM, TEXT)]
    fields += [(_code(HASHED), pa.int64())] if block.hashed is not None else []
    told = {"attributes": [*kinds], "json": [attribute(name) for name, kind in kinds.items() if kind == "json"]}
    return pa.schema(fields, metadata={"dualtower": json.dumps(told)})


def _batch(block: Block, schema: pa.Schema, kinds: Mapping[str, str]) -> pa.RecordBatch:
    codes = codes_of(block.ids)
    columns: dict[str, Any] = {ID: block.ids, PRODUCT_ID: block.product_ids, TEXTS: block.texts}
    columns[PROBLEM] = block.problems
    for name, values in block.attributes.items():
        columns[attribute(name)] = list(map(_as_json, values)) if kinds[name] == "json" else values
    columns[_code(ID)] = codes
    columns[_code(PRODUCT_ID)] = codes if block.product_ids is block.ids else codes_of(block.product_ids)
    if block.hashed is not None:
        columns[_code(HASHED)] = codes_of(block.hashed)
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _widen(kinds: dict[str, str], block: Block) -> bool:
    """Let the kinds hold the values of this block as well; whether a schema made before no longer does."""
    before = _stored(kinds)
    for name, values in block.attributes.items():
        kind, had = _kind(values), kinds.get(name, "none")
        kinds[name] = kind if had == "none" else had if kind in ("none", had) else "json"
    return _stored(kinds) != before


def _stored(kinds: Mapping[str, str]) -> list[str]:
    return ["text" if kind == "none" else kind for kind in kinds.values()]


def _kind(values: Sequence[Any]) -> str:
    """What holds each of these values as it is: a column of one type, or JSON."""
    types = set(map(type, values)) - {type(None)}
    if not types:
        return "none"
    kind = KINDS.get(types.pop(), "json")
    if types:
        return "json"
    if kind == "int" and not all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return "json"
    return "json" if kind == "text" and not all(map(_is_unicode, filter(None, values))) else kind


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 holds it: JSON may say half a character, a lone surrogate."""
    return text.isascii() or text.encode(errors="ignore").decode() == text


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str)


def _checksum(stream: Any, size: int) -> int:
    """Of the next `size` bytes."""
    found = 0
    while size > 0 and (part := stream.read(min(AT_ONCE, size))):
        found, size = zlib.crc32(part, found), size - len(part)
    return found


def _code(column: str) -> str:
    return f"code/{column}"


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a worker that was forked
        with suppress(OSError):
            path.unlink()
