"""SQLite for many threads: one connection for each that is at work, handed on when it is done."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dualtower.errors import CatalogueError
from dualtower.retrieval.schema import register_checksums

__all__ = ["Database"]

BUSY_SECONDS = 60.0


class Database:
    """An SQLite file; safe to use from many threads.

    Connections belong to no thread: those of a server come and go, and would leave theirs open behind them.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: deque[sqlite3.Connection] = deque()

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement.

        Raises:
            CatalogueError: SQLite cannot.
        """
        try:
            with self.lent() as connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise CatalogueError(f"cannot read {self.path}: {error}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the database, for any number of statements.

        Raises:
            CatalogueError: SQLite cannot.
        """
        try:
            with self.lent() as connection:
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise CatalogueError(f"cannot read {self.path}: {error}") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The write lock; all or nothing.

        Raises:
            CatalogueError: SQLite cannot, or another writer held the lock too long.
        """
        try:
            with self.lent() as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise CatalogueError(f"cannot write {self.path}: {error}. What was accepted before is intact") from error

    @contextlib.contextmanager
    def lent(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous = FULL")
            register_checksums(connection)
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle; the next use opens the file again."""
        while self._idle:
            self._idle.pop().close()
