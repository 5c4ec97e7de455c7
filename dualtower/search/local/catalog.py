"""A catalog on disk: rows in SQLite, vectors in append-only files, both committed together.

::

    catalog.json           what it is: model, dimensions, attributes; written once
    rows.sqlite              the truth: versions of rows, live and dead, whose order is that of the vectors
    vectors/<g>-<kind>.f16   float16 vectors of generation g; slots are only ever appended
    cache/                   what can be rebuilt from the rest: columns, nearest-neighbor index

A write takes SQLite's lock, appends vectors to the files and waits for the disk, and only then commits the rows that
point to them. Killed at any byte, the folder opens at the last commit; what lies in the files behind it is written
over. A changed row becomes a new version with a slot of its own. `compact` writes the next generation, without what is
dead, and switches to it in one commit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from dualtower.errors import CatalogError, ConfigError, UnknownRow
from dualtower.files import sync, write_text_atomically
from dualtower.search.local.compaction import compact
from dualtower.search.local.connection_pool import Database
from dualtower.search.local.info_file import ABOUT, info_json, read_info
from dualtower.search.local.schema import (
    COLUMNS,
    SCHEMA,
    WHOLE,
    insert_versions,
    remove_versions,
    row_checksum,
    set_columns,
)
from dualtower.search.local.snapshot import READ_STATE, Snapshot, has_been
from dualtower.search.local.vector_file import VectorFile, crcs_of
from dualtower.search.local.verify import problems_of
from dualtower.search.records import (
    CatalogInfo,
    EmbeddedItem,
    State,
    StoredRow,
    check_changes,
    check_items,
    vector_names_in,
)

__all__ = ["Catalog"]

log = logging.getLogger(__name__)
_STORED = ", ".join(["checksum", *COLUMNS])
REMEMBERED = 100_000
"""Changes by which a cache is told apart from one of another catalog."""


class Catalog:
    """One catalog folder, for any number of readers and writers, in threads or processes; writers take turns.

    Raises:
        CatalogError: There is none in `folder`, or it is broken or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self._database = Database(self.folder / "rows.sqlite")
        self.written = self.state.sequence
        """Number of the last change that was made through this object."""

    @classmethod
    def create(cls, folder: str | Path, info: CatalogInfo) -> Catalog:
        """Make an empty catalog.

        Raises:
            CatalogError: Something lies in `folder` already, or the file system refused.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CatalogError(f"{folder} is not empty; open the catalog in it, or name a new folder")
        try:
            (folder / "vectors").mkdir(parents=True, exist_ok=True)
            (folder / "cache").mkdir(exist_ok=True)
            with contextlib.closing(sqlite3.connect(folder / "rows.sqlite")) as connection:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(SCHEMA)
                connection.execute("INSERT INTO state VALUES (0, 0, 0, 0, ?)", (_new_token(),))
                connection.execute("INSERT INTO history SELECT sequence, token FROM state")
                connection.execute("INSERT INTO about VALUES (?)", (info_json(info),))
                connection.commit()
            sync(folder)
            # Last, as its presence says that the folder is a catalog.
            write_text_atomically(folder / ABOUT, info_json(info))
        except (OSError, sqlite3.Error) as error:
            raise CatalogError(f"cannot make a catalog in {folder}: {error}") from error
        return cls(folder)

    @property
    def state(self) -> State:
        """Where the catalog stands now."""
        return State(*self._database.read(READ_STATE)[0])

    def __len__(self) -> int:
        """Number of live rows."""
        live = "SELECT next_slot - (SELECT COUNT(*) FROM rows WHERE removed_at IS NOT NULL) FROM state"
        return int(self._database.read(live)[0][0])  # the dead are few, and strangers may ask

    def upsert(self, items: Sequence[EmbeddedItem]) -> None:
        """Add rows, replacing those with the same ids; when it returns, they are on the disk.

        Raises:
            DataError: An item does not fit the catalog, or two have the same id.
            CatalogError: The file system refused, or another writer held the lock too long.
        """
        if not items:
            return
        blocks = check_items(self.info, items)
        with self.writing() as (connection, state):
            for vector_name, block in blocks.items():
                self.vectors(vector_name, state.generation).write(state.next_slot, block)
            created: dict[str, int] = {}
            for some in _batches([item.id for item in items]):
                found = f"SELECT id, created FROM rows WHERE removed_at IS NULL AND id IN ({_marks(some)})"
                created |= dict(connection.execute(found, some))
            sequence = state.sequence + 1
            remove_versions(connection, [item.id for item in items], sequence)
            numbers = range(state.next_number, state.next_number + len(items))
            crcs_by_kind = {vector_name: crcs_of(block) for vector_name, block in blocks.items()}
            versions = []
            for i, (number, item) in enumerate(zip(numbers, items, strict=True)):
                crcs = [
                    of_kind[i] if vector_name in item.vectors else None for vector_name, of_kind in crcs_by_kind.items()
                ]
                times = (sequence, created.get(item.id, sequence), None, None)
                about = (item.product_id, item.title, _as_json(item.attributes), json.dumps(crcs))
                image = None if item.image is None else crc32(item.image)
                versions.append((number, item.id, *times, *about, image, item.digest))
            insert_versions(connection, versions)
            images = [(n, item.image) for n, item in zip(numbers, items, strict=True) if item.image is not None]
            connection.executemany("INSERT INTO images VALUES (?, ?)", images)
            self.advance(connection, state, next_slot=state.next_slot + len(items), next_number=numbers.stop)
        self.written = max(self.written, sequence)

    def update_attributes(self, changes: Mapping[str, Mapping[str, Any]]) -> int:
        """Change attributes of rows, of all or of none; vectors, image, title and what is not named stay.

        A row keeps its slot, so that no index grows old by it. Pages of a search that began before show and filter by
        the new attributes.

        Args:
            changes: Id -> attribute -> new value; None takes a value away.

        Returns:
            How many rows were not so already.

        Raises:
            UnknownRow: There is no row of such an id.
            DataError: There is no such attribute, a value does not fit it, or vectors are made from it.
            CatalogError: The file system refused, or another writer held the lock too long.
        """
        check_changes(self.info, changes)
        with self.writing() as (connection, state):
            held: dict[str, dict[str, Any]] = {}
            for some in _batches(list(changes)):
                found = connection.execute(
                    f"SELECT id, attributes FROM rows WHERE removed_at IS NULL AND id IN ({_marks(some)})", some
                )
                held |= {row_id: json.loads(attributes) for row_id, attributes in found}
            if unknown := [row_id for row_id in changes if row_id not in held]:
                raise UnknownRow(unknown)
            new = {row_id: held[row_id] | dict(given) for row_id, given in changes.items()}
            # Without its digest a row is embedded anew when its source is indexed again: the source decides then.
            rows = [(_as_json(new[i]), state.sequence + 1, i) for i in new if new[i] != held[i]]
            set_columns(connection, "id = ?3 AND removed_at IS NULL", rows, attributes="?1", updated="?2", digest="''")
            if rows:
                self.advance(connection, state)
        self.written = max(self.written, state.sequence + bool(rows))
        return len(rows)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove rows; returns how many there were. Once it has returned, no search finds them."""
        with self.writing() as (connection, state):
            removed = remove_versions(connection, list(dict.fromkeys(ids)), state.sequence + 1)
            if removed:
                self.advance(connection, state)
        self.written = max(self.written, state.sequence + bool(removed))
        return removed

    def get(self, ids: Sequence[str]) -> list[StoredRow]:
        """Rows by id, in the order of `ids`; those that do not exist are left out."""
        found = {row.id: row for row in self._rows_where("id", ids, "removed_at IS NULL")}
        return [found[row_id] for row_id in ids if row_id in found]

    def at(self, numbers: Sequence[int], snapshot: Snapshot | None = None) -> dict[int, StoredRow]:
        """Number -> version of a row, live or dead; those that a compaction has dropped are left out.

        Args:
            numbers: Numbers of versions.
            snapshot: In which they are looked up; default the present state.
        """
        return {row.number: row for row in self._rows_where("number", numbers, snapshot=snapshot)}

    def image(self, row_id: str) -> bytes | None:
        """Encoded image of a row, or None."""
        found = self._database.read(
            "SELECT bytes FROM images WHERE number = (SELECT number FROM rows WHERE id = ? AND removed_at IS NULL)",
            (row_id,),
        )
        return found[0][0] if found else None

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""
        found = self._database.read("SELECT id, digest FROM rows WHERE removed_at IS NULL")
        return {str(row_id): str(digest) for row_id, digest in found}

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One state of rows and vectors, held still while it is read; writers and compactions go on beside it.

        Raises:
            CatalogError: SQLite cannot, or a vector file is missing or too short.
        """
        seen = None
        while True:
            with self._database.reading() as connection:
                state = State(*connection.execute(READ_STATE).fetchone())
                try:
                    vectors = {
                        k: self.vectors(k, state.generation).open(state.next_slot) for k in self.info.vector_names
                    }
                except CatalogError:
                    if state.generation == seen:
                        raise
                    seen = state.generation  # perhaps a compaction has taken the files away just now
                    continue
                yield Snapshot(state, vectors, connection)
                return

    def went_through(self, state: State) -> bool:
        """Whether the catalog stands where a state says, or came from there by appending to the same files."""
        with self._database.reading() as connection:
            now = State(*connection.execute(READ_STATE).fetchone())
            return now.generation == state.generation and has_been(connection, state)

    def vectors(self, vector_name: str, generation: int | None = None) -> VectorFile:
        """The file of one kind of vectors.

        Raises:
            ConfigError: The catalog has no such kind.
        """
        if vector_name not in self.info.vector_names:
            raise ConfigError(
                f"this catalog has no {vector_name!r} vectors; it has: {', '.join(self.info.vector_names)}"
            )
        generation = self.state.generation if generation is None else generation
        return VectorFile(self.folder / "vectors" / f"{generation}-{vector_name}.f16", self.info.dim)

    def compact(self) -> int:
        """Write the live vectors into files of their own and drop what is dead; returns the slots that were freed.

        Readers that have the old files open go on with them, and writers go on meanwhile.
        """
        freed = compact(self)
        self._database.shrink()
        return freed

    def verify(self) -> list[str]:
        """Look for what is wrong, by SQLite's own check and all checksums of rows, images and vectors."""
        try:
            with self.snapshot() as snapshot:
                problems = list(problems_of(snapshot, self.info))
            if [(info_json(self.info),)] != self._database.read("SELECT info FROM about"):
                problems.append(f"{self.folder / ABOUT} is not as it was written")
            return problems
        except CatalogError as error:
            return [str(error)]

    @contextlib.contextmanager
    def writing(self) -> Iterator[tuple[sqlite3.Connection, State]]:
        """The write lock, and where the catalog stands; all or nothing. Whoever changes anything calls `advance`."""
        with self._database.writing() as connection:
            yield connection, State(*connection.execute(READ_STATE).fetchone())

    def advance(self, connection: sqlite3.Connection, state: State, **changed: int) -> None:
        """Go on from a state to the next one, within `writing`."""
        new = replace(state, sequence=state.sequence + 1, token=_new_token(), **changed)
        connection.execute(
            "UPDATE state SET generation = ?, next_slot = ?, sequence = ?, next_number = ?, token = ?", astuple(new)
        )
        connection.execute("INSERT INTO history VALUES (?, ?)", (new.sequence, new.token))
        connection.execute("DELETE FROM history WHERE sequence <= ?", (new.sequence - REMEMBERED,))

    def close(self) -> None:
        """Let go of the database; the folder can be opened again."""
        self._database.close()

    def _rows_where(
        self, column: str, keys: Sequence[Any], condition: str = "TRUE", snapshot: Snapshot | None = None
    ) -> Iterator[StoredRow]:
        """Versions that have one of some ids or numbers, in any order."""
        for some in _batches(keys):
            statement = f"SELECT {_STORED} FROM rows WHERE {column} IN ({_marks(some)}) AND {condition}"
            read = snapshot.connection.execute if snapshot else self._database.read
            try:
                found = list(read(statement, some))
                rows = [row for row in found if row_checksum(row[1:]) == row[0]]
                damaged = len(rows) < len(found)
            except (CatalogError, sqlite3.Error) as error:
                if "UTF-8" not in str(error):  # which columns that have changed may be no more
                    raise
                rows, damaged = list(read(f"{statement} AND {WHOLE}", some)), True
            if damaged:
                log.warning("%s: rows have changed on the disk and are left out; see `dualtower verify`", self.folder)
            attributes = json.loads(f"[{','.join([row[9] for row in rows])}]")  # read in one go
            for row, values in zip(rows, attributes, strict=True):
                _, number, row_id, sequence, _, removed_at, updated, product_id, title, _, crcs, _, _ = row
                vector_names = vector_names_in(crcs, self.info)
                yield StoredRow(
                    row_id, number, sequence, product_id, title, values, vector_names, removed_at, updated, crcs
                )


def _new_token() -> int:
    return secrets.randbits(63)


def _as_json(attributes: Mapping[str, Any]) -> str:
    return json.dumps(dict(attributes), ensure_ascii=False, default=str)


def _batches(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many keys at a time as one statement may bind."""
    for start in range(0, len(keys), 500):
        yield keys[start : start + 500]


def _marks(keys: Sequence[Any]) -> str:
    return ", ".join("?" * len(keys))
