"""The tables of a catalogue's database, their checksums, and how those of an older format become new ones.

A row of ``rows`` is one *version* of a catalogue row. Its number never changes and is never used again, so that who has
seen a version can always ask for it. A version that has been replaced or deleted stays, with when it died, until the
next compaction. Vectors lie in the order of the numbers: the slot of a version is its rank among all of them, and
whatever drops versions (`dualtower.retrieval.compaction`) writes the vectors anew in the same commit.
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
    "retire",
    "row_checksum",
    "set_columns",
    "upgrade",
]

COLUMNS = (
    "number",
    "id",
    "sequence",
    "created",
    "died",
    "updated",
    "product_id",
    "title",
    "attributes",
    "checksums",
    "picture",
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
CREATE TABLE about (info TEXT NOT NULL);  -- what catalogue.json says, to find and to mend it by
CREATE TABLE history (sequence INTEGER PRIMARY KEY, token INTEGER NOT NULL);  -- of the last changes
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL,
    sequence INTEGER NOT NULL,   -- change with which this version came
    created INTEGER NOT NULL,    -- change with which the first version of the row came
    died INTEGER,                -- change with which it was replaced or deleted; null while it lives
    updated INTEGER,             -- change that gave it its present attributes; null where they are its first
    product_id TEXT NOT NULL, title TEXT NOT NULL, attributes TEXT NOT NULL,
    checksums TEXT NOT NULL,     -- JSON list, one number per kind of vector, null where the row has none
    picture INTEGER,             -- checksum of its picture; null where it has none, or an older format kept none
    digest TEXT NOT NULL,
    checksum INTEGER NOT NULL    -- of all the above
);
CREATE UNIQUE INDEX rows_by_id ON rows (id) WHERE died IS NULL;
CREATE INDEX rows_by_death ON rows (died) WHERE died IS NOT NULL;
CREATE INDEX rows_by_update ON rows (updated) WHERE updated IS NOT NULL;
CREATE TABLE pictures (number INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
"""
_UPGRADE = """
ALTER TABLE rows RENAME TO old_rows;
ALTER TABLE state RENAME TO old_state;
ALTER TABLE gone RENAME TO old_gone;
ALTER TABLE pictures RENAME TO old_pictures;
"""
_TAKE_OVER = """
ALTER TABLE old_pictures RENAME COLUMN slot TO number;
DROP TABLE pictures;
ALTER TABLE old_pictures RENAME TO pictures;
INSERT INTO rows
    SELECT slot, id, sequence, created, NULL, NULL, product_id, title, attributes, checksums, NULL, digest, 0
    FROM old_rows;
INSERT INTO rows SELECT slot, id, 0, 0, sequence, NULL, '', '', '{}', '[]', NULL, '', 0 FROM old_gone;
INSERT INTO state SELECT generation, next_slot, sequence, next_slot, random() FROM old_state;
INSERT INTO history SELECT sequence, token FROM state;
DROP TABLE old_rows; DROP TABLE old_state; DROP TABLE old_gone;
"""


def register_checksums(connection: sqlite3.Connection) -> None:
    """Let SQL compute ``crc32`` of bytes."""
    connection.create_function("crc32", 1, zlib.crc32, deterministic=True)


def insert_versions(connection: sqlite3.Connection, versions: Sequence[tuple[Any, ...]]) -> None:
    """Insert versions, given as tuples in the order of `COLUMNS`."""
    marks = ", ".join("?" * (len(COLUMNS) + 1))
    connection.executemany(f"INSERT INTO rows VALUES ({marks})", [(*row, row_checksum(row)) for row in versions])


def retire(connection: sqlite3.Connection, ids: Sequence[str], sequence: int) -> int:
    """Let the live versions of some rows die, and drop their pictures; returns how many there were."""
    before = connection.total_changes
    set_columns(connection, "id = ? AND died IS NULL", [(row_id,) for row_id in ids], died=sequence)
    found = connection.total_changes - before
    connection.execute("DELETE FROM pictures WHERE number IN (SELECT number FROM rows WHERE died = ?)", (sequence,))
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
    told = {name: "NULL" if value is None else str(value) for name, value in new.items()}
    columns = ", ".join(f"{name} = {value}" for name, value in told.items())
    checksum = _checksum_of(told.get(name, name) for name in COLUMNS)
    connection.executemany(f"UPDATE rows SET {columns}, checksum = {checksum} WHERE {where}", values)


def upgrade(connection: sqlite3.Connection, about: str) -> None:
    """Make the tables of format 1 into those of this one, in the transaction that is open.

    Slots become numbers, what had gone becomes versions that are dead, and pictures stay where they are.

    Args:
        connection: In a transaction.
        about: What ``catalogue.json`` will say.
    """
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'gone'").fetchall():
        return  # another process was quicker
    for script in (_UPGRADE, "DROP INDEX rows_by_sequence; DROP INDEX gone_by_sequence;", SCHEMA, _TAKE_OVER):
        for statement in _statements(script):
            connection.execute(statement)
    connection.execute("INSERT INTO about VALUES (?)", (about,))
    set_columns(connection, "TRUE", digest="digest")  # which sets the checksums


def _statements(script: str) -> list[str]:
    """Single statements: `executescript` would commit before the first."""
    lines = [line.split("--")[0] for line in script.splitlines()]
    return [statement for statement in "\n".join(lines).split(";") if statement.strip()]


def row_checksum(columns: Iterable[Any]) -> int:
    """What `WHOLE` computes, of the values of `COLUMNS`; quicker where they have been read anyhow."""
    return zlib.crc32("\x1f".join(["\0" if column is None else str(column) for column in columns]).encode())
