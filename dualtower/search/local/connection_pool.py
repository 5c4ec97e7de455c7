"""SQLite for many threads: one connection for each that is at work, handed on when it is done."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dualtower.errors import CatalogError
from dualtower.search.local.schema import register_checksums

__all__ = ["Database"]

BUSY_SECONDS = 60.0
INCREMENTAL = 2
"""What SQLite says of a database that gives its space back in steps."""
PAGES_AT_ONCE = 2000
log = logging.getLogger(__name__)


class Database:
    """An SQLite file; safe to use from many threads.

    Connections belong to no thread: those of a server come and go, and would leave theirs open behind them.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: deque[sqlite3.Connection] = deque()
        self._read_only = not os.access(path.parent, os.W_OK)
        self._opened = (0, 0)

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement.

        Raises:
            CatalogError: SQLite cannot.
        """
        try:
            connection, opened = self._borrow(), self._opened
            try:
                return connection.execute(statement, values).fetchall()
            finally:
                self._give_back(connection, opened)
        except sqlite3.Error as error:
            raise CatalogError(f"cannot read {self.path}: {error}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the database, for any number of statements.

        Raises:
            CatalogError: SQLite cannot.
        """
        try:
            with self.connection() as connection:
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise CatalogError(f"cannot read {self.path}: {error}") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The write lock; all or nothing.

        Raises:
            CatalogError: SQLite cannot, or another writer held the lock too long.
        """
        try:
            with self.connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise CatalogError(f"cannot write {self.path}: {error}. What was accepted before is intact") from error

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile."""
        connection, opened = self._borrow(), self._opened
        try:
            yield connection
        finally:
            self._give_back(connection, opened)

    def _borrow(self) -> sqlite3.Connection:
        self._drop_outdated()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _give_back(self, connection: sqlite3.Connection, opened: tuple[int, int]) -> None:
        if opened == self._opened:
            self._idle.append(connection)
        else:  # it is of a file that has been changed meanwhile
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        address = self.path.absolute().as_uri()
        if self._read_only:
            # Where SQLite can make no files beside it, it reads what it is told never changes, or, with the log that a
            # writer elsewhere has left, what does.
            address += "?immutable=1" if self._state_of_files()[1] == 0 else "?mode=ro"
        connection = sqlite3.connect(
            address, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
        )
        if not self._read_only:
            connection.execute("PRAGMA synchronous = FULL")
        register_checksums(connection)
        return connection

    def _drop_outdated(self) -> None:
        """Close connections to a file that was said never to change, once somebody else has changed it."""
        if self._read_only and (now := self._state_of_files()) != self._opened:
            self.close()
            self._opened = now

    def _state_of_files(self) -> tuple[int, int]:
        """When the database was changed, and the size of its log."""
        log_file = self.path.with_name(f"{self.path.name}-wal")
        try:
            return self.path.stat().st_mtime_ns, log_file.stat().st_size if log_file.exists() else 0
        except OSError:
            return 0, 0

    def shrink(self) -> None:
        """Give the space of what was deleted back to the file system, in steps for which other writers hardly wait."""
        try:
            with self.connection() as connection:
                if _value(connection, "auto_vacuum") != INCREMENTAL:
                    _begin_to_shrink(connection)
                free = _value(connection, "freelist_count")
                while free:
                    connection.execute(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})").fetchall()
                    before, free = free, _value(connection, "freelist_count")
                    if free >= before:  # writers free more than this gives back
                        break
                connection.execute("PRAGMA busy_timeout = 1000")  # readers may hold the log
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
        except sqlite3.OperationalError as error:
            log.warning("%s keeps the space of what was deleted until the next compaction: %s", self.path, error)

    def close(self) -> None:
        """Close what is idle; the next use opens the file again."""
        while self._idle:
            self._idle.pop().close()


def _value(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _begin_to_shrink(connection: sqlite3.Connection) -> None:
    """Let a file of an older format shrink, which it could not: all at once where much is free, then in steps."""
    if 4 * _value(connection, "freelist_count") > _value(connection, "page_count"):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
