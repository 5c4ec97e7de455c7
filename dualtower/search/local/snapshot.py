"""One state of a catalog, held still while it is read: its rows and the vector files that belong to them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualtower.search.local.vector_file import VectorReader
from dualtower.search.records import State

__all__ = ["READ_STATE", "Snapshot", "has_been"]

READ_STATE = "SELECT generation, next_slot, sequence, next_number, token FROM state"
_AT_ONCE = 5000


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What `Catalog.snapshot` gives; valid until it is closed.

    Attributes:
        state: Which state.
        vectors: Kind -> reader; valid for ever.
        connection: In a transaction that only reads.
    """

    state: State
    vectors: Mapping[str, VectorReader]
    connection: sqlite3.Connection

    def count(self, *, first: int = 0) -> int:
        """Number of versions from a number on, live or dead."""
        return int(self.connection.execute("SELECT COUNT(*) FROM rows WHERE number >= ?", (first,)).fetchone()[0])

    def versions(self, columns: str, *, first: int = 0) -> Iterator[Sequence[tuple[Any, ...]]]:
        """Versions from a number on, live or dead, in the order of their numbers, some thousand at a time."""
        cursor = self.connection.execute(f"SELECT {columns} FROM rows WHERE number >= ? ORDER BY number", (first,))
        with contextlib.closing(cursor):
            while rows := cursor.fetchmany(_AT_ONCE):
                yield rows

    def numbers(self, *, below: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of all versions below one, ascending, and with which change they came, int64 ``[N]`` each."""
        rows = self.connection.execute("SELECT number, sequence FROM rows WHERE number < ? ORDER BY number", (below,))
        both = np.fromiter((value for row in rows for value in row), np.int64).reshape(-1, 2)
        return both[:, 0].copy(), both[:, 1].copy()

    def removals(self, *, since: int) -> list[tuple[int, int]]:
        """Number and time of death of the versions that died after a sequence number."""
        return self.connection.execute("SELECT number, removed_at FROM rows WHERE removed_at > ?", (since,)).fetchall()

    def updates(self, *, since: int, below: int) -> list[tuple[int, str]]:
        """Number and attributes, in JSON, of versions below a number that were given others after a sequence number."""
        found = "SELECT number, attributes FROM rows WHERE updated > ? AND number < ?"
        return self.connection.execute(found, (since, below)).fetchall()

    def has_been(self, state: State) -> bool:
        """Whether the catalog was once in a state, of which it remembers the last thousands."""
        return has_been(self.connection, state)


def has_been(connection: sqlite3.Connection, state: State) -> bool:
    """See `Snapshot.has_been`."""
    found = connection.execute("SELECT token FROM history WHERE sequence = ?", (state.sequence,)).fetchone()
    return found == (state.token,)
