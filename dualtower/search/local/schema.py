"""The tables of a catalog's database, and their checksums.

A row of ``rows`` is one *version* of a catalog row. Its number never changes and is never used again, so that who has
seen a version can always ask for it. A version that has been replaced or deleted stays, with when it died, until the
next compaction. Vectors lie in the order of the numbers: the slot of a version is its rank among all of them, and
whatever drops versions (`dualtower.search.local.compaction`) writes the vectors anew in the same commit.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "WHOLE",
    "insert_versions",
    "register_checksums",
    "remove_versions",
    "row_checksum",
    "set_columns",
]

COLUMNS = (
    "number",
    "id",
    "sequence",
    "created",
    "removed_at",
    "updated",
    "product_id",
    "title",
    "attributes",
    "checksums",
    "image",
    "digest",
)


def _checksum_of(columns: Iterable[str]) -> str:
    """The checksum of columns in SQL, of bytes, as what has changed on the disk need not be UTF-8."""
    joined = " || char(31) || ".join(f"IFNULL({column}, char(0))" for column in columns)
    return f"crc32(CAST({joined} AS BLOB))"


WHOLE = f"checksum = {_checksum_of(COLUMNS)}"
"""Condition that a row is as it was written."""
SCHEMA = """
CREATE TABLE state (
    generation INTEGER NOT NULL, next_slot INTEGER NOT NULL, sequence INTEGER NOT NULL,
    next_number INTEGER NOT NULL, token INTEGER NOT NULL
);
CREATE TABLE about (info TEXT NOT NULL);  -- what catalog.json says, to find and to mend it by
CREATE TABLE history (sequence INTEGER PRIMARY KEY, token INTEGER NOT NULL);  -- of the last changes
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL,
    sequence INTEGER NOT NULL,   -- change with which this version came
    created INTEGER NOT NULL,    -- change with which the first version of the row came
    removed_at INTEGER,                -- change with which it was replaced or deleted; null while it lives
    updated INTEGER,             -- change that gave it its present attributes; null where they are its first
    product_id TEXT NOT NULL, title TEXT NOT NULL, attributes TEXT NOT NULL,
    checksums TEXT NOT NULL,     -- JSON list, one number per kind of vector, null where the row has none
    image INTEGER,             -- checksum of its image; null where it has none
    digest TEXT NOT NULL,
    checksum INTEGER NOT NULL    -- of all the above
);
CREATE UNIQUE INDEX rows_by_id ON rows (id) WHERE removed_at IS NULL;
CREATE INDEX rows_by_removal ON rows (removed_at) WHERE removed_at IS NOT NULL;
CREATE INDEX rows_by_update ON rows (updated) WHERE updated IS NOT NULL;
CREATE TABLE images (number INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
"""


def register_checksums(connection: sqlite3.Connection) -> None:
    """Let SQL compute ``crc32`` of bytes."""
    connection.create_function("crc32", 1, zlib.crc32, deterministic=True)


def insert_versions(connection: sqlite3.Connection, versions: Sequence[tuple[Any, ...]]) -> None:
    """Insert versions, given as tuples in the order of `COLUMNS`."""
    marks = ", ".join("?" * (len(COLUMNS) + 1))
    connection.executemany(f"INSERT INTO rows VALUES ({marks})", [(*row, row_checksum(row)) for row in versions])


def remove_versions(connection: sqlite3.Connection, ids: Sequence[str], sequence: int) -> int:
    """Let the live versions of some rows die, and drop their images; returns how many there were."""
    before = connection.total_changes
    set_columns(connection, "id = ? AND removed_at IS NULL", [(row_id,) for row_id in ids], removed_at=sequence)
    found = connection.total_changes - before
    connection.execute("DELETE FROM images WHERE number IN (SELECT number FROM rows WHERE removed_at = ?)", (sequence,))
    return found


def set_columns(
    connection: sqlite3.Connection, where: str, values: Sequence[tuple[Any, ...]] = ((),), **new: int | str | None
) -> None:
    """Set columns of the rows that satisfy a condition, and their checksums with them.

    Args:
        connection: In a transaction.
        where: Condition in SQL; it is run once for each of `values`, which it binds.
        values: See `where`.
        new: Column -> value, or the name of another column.
    """
    expressions = {name: "NULL" if value is None else str(value) for name, value in new.items()}
    columns = ", ".join(f"{name} = {value}" for name, value in expressions.items())
    checksum = _checksum_of(expressions.get(name, name) for name in COLUMNS)
    connection.executemany(f"UPDATE rows SET {columns}, checksum = {checksum} WHERE {where}", values)


def row_checksum(columns: Iterable[Any]) -> int:
    """What `WHOLE` computes, of the values of `COLUMNS`; quicker where they have been read anyhow."""
    return zlib.crc32("\x1f".join(["\0" if column is None else str(column) for column in columns]).encode())
