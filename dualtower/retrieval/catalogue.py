"""A catalogue on disk: rows in SQLite, vectors in append-only files, both committed together.

::

    catalogue.json           what it is: model, dimensions, attributes; written once
    rows.sqlite              the truth: rows, which slot of the vector files is theirs, what has gone
    vectors/<g>-<kind>.f16   float16 vectors of generation g; slots are only ever appended
    cache/                   what can be rebuilt from the rest: columns, nearest-neighbour index

A write takes SQLite's lock, appends vectors to the files and waits for the disk, and only then commits the rows that
point to them. Killed at any byte, the folder opens at the last commit; what lies in the files behind it is written
over. A changed row takes a new slot. `compact` writes the next generation and switches to it in one commit.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogueError, ConfigError, UnknownRow
from dualtower.folder import write_text_atomically
from dualtower.retrieval.database import Database
from dualtower.retrieval.records import (
    FORMAT,
    CatalogueInfo,
    Changes,
    Item,
    State,
    StoredRow,
    check_changes,
    check_items,
)
from dualtower.retrieval.vectors import VectorFile, crc_of, sync_folder

__all__ = ["Catalogue"]

_STATE = (
    "SELECT generation, next_slot, state.sequence, token FROM state JOIN history ON history.sequence = state.sequence"
)
_STORED = "id, slot, sequence, product_id, title, attributes, checksums"
SCHEMA = """
CREATE TABLE state (generation INTEGER NOT NULL, next_slot INTEGER NOT NULL, sequence INTEGER NOT NULL);
INSERT INTO state VALUES (0, 0, 0);
CREATE TABLE rows (
    id TEXT NOT NULL UNIQUE, slot INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, created INTEGER NOT NULL,
    product_id TEXT NOT NULL, title TEXT NOT NULL, attributes TEXT NOT NULL, checksums TEXT NOT NULL,
    digest TEXT NOT NULL, updated INTEGER
);  -- checksums: JSON list, one number per kind of vector, null where the row has none
    -- updated: the change that gave the row its present attributes, null where that is the one of its sequence
CREATE INDEX rows_by_sequence ON rows (sequence);
CREATE INDEX rows_by_update ON rows (updated) WHERE updated IS NOT NULL;
CREATE TABLE history (sequence INTEGER PRIMARY KEY, token INTEGER NOT NULL);  -- of the changes of this generation
CREATE TABLE gone (slot INTEGER PRIMARY KEY, id TEXT NOT NULL, sequence INTEGER NOT NULL);
CREATE INDEX gone_by_sequence ON gone (sequence);
CREATE TABLE pictures (slot INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
"""


class Catalogue:
    """One catalogue folder, for any number of readers and writers, in threads or processes; writers take turns.

    Raises:
        CatalogueError: There is none in `folder`, or it is broken or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = _read_info(self.folder)
        self._database = Database(self.folder / "rows.sqlite")
        _ = self.state

    @classmethod
    def create(cls, folder: str | Path, info: CatalogueInfo) -> Catalogue:
        """Make an empty catalogue.

        Raises:
            CatalogueError: Something lies in `folder` already, or the file system refused.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CatalogueError(f"{folder} is not empty; open the catalogue in it, or name a new folder")
        try:
            (folder / "vectors").mkdir(parents=True, exist_ok=True)
            (folder / "cache").mkdir(exist_ok=True)
            with contextlib.closing(sqlite3.connect(folder / "rows.sqlite")) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(SCHEMA)
                connection.execute("INSERT INTO history VALUES (0, ?)", (_new_token(),))
                connection.commit()
            sync_folder(folder)
            # Last, as its presence says that the folder is a catalogue.
            write_text_atomically(folder / "catalogue.json", json.dumps(to_dict(info), indent=2, ensure_ascii=False))
        except (OSError, sqlite3.Error) as error:
            raise CatalogueError(f"cannot make a catalogue in {folder}: {error}") from error
        return cls(folder)

    @property
    def state(self) -> State:
        """Where the catalogue stands now."""
        row = self._database.read(_STATE)[0]
        return State(*row)

    def __len__(self) -> int:
        """Number of live rows."""
        return int(self._database.read("SELECT COUNT(*) FROM rows")[0][0])

    def upsert(self, items: Sequence[Item]) -> None:
        """Add rows, replacing those with the same ids; when it returns, they are on the disk.

        Raises:
            DataError: An item does not fit the catalogue, or two have the same id.
            CatalogueError: The file system refused, or another writer held the lock too long.
        """
        if not items:
            return
        blocks = check_items(self.info, items)
        with self._writing() as (connection, state):
            first, sequence = state.next_slot, state.sequence + 1
            for kind, block in blocks.items():
                self.vectors(kind, state.generation).write(first, block)
            checksums = [
                [crc_of(blocks[kind][i]) if kind in item.vectors else None for kind in blocks]
                for i, item in enumerate(items)
            ]
            connection.executemany(
                "INSERT INTO gone SELECT slot, id, ? FROM rows WHERE id = ?", [(sequence, item.id) for item in items]
            )
            connection.executemany(
                "DELETE FROM pictures WHERE slot IN (SELECT slot FROM rows WHERE id = ?)",
                [(item.id,) for item in items],
            )
            rows = [
                (
                    item.id,
                    first + i,
                    sequence,
                    sequence,
                    item.product_id,
                    item.title,
                    _as_json(item.attributes),
                    json.dumps(crcs),
                    item.digest,
                )
                for i, (item, crcs) in enumerate(zip(items, checksums, strict=True))
            ]
            connection.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL) "
                "ON CONFLICT (id) DO UPDATE SET slot = excluded.slot, sequence = excluded.sequence, "
                "product_id = excluded.product_id, title = excluded.title, attributes = excluded.attributes, "
                "checksums = excluded.checksums, digest = excluded.digest, updated = NULL",
                rows,
            )
            connection.executemany(
                "INSERT INTO pictures VALUES (?, ?)",
                [(first + i, item.picture) for i, item in enumerate(items) if item.picture is not None],
            )
            _advance(connection, replace(state, next_slot=first + len(items)))

    def update_attributes(self, changes: Mapping[str, Mapping[str, Any]]) -> int:
        """Change attributes of rows, of all or of none; vectors, picture, title and what is not named stay.

        A row keeps its slot, so that no index grows old by it. Pages of a search that began before show and filter by
        the new attributes.

        Args:
            changes: Id -> attribute -> new value; None takes a value away.

        Returns:
            How many rows were not so already.

        Raises:
            UnknownRow: There is no row of such an id.
            DataError: There is no such attribute, a value does not fit it, or vectors are made from it.
            CatalogueError: The file system refused, or another writer held the lock too long.
        """
        check_changes(self.info, changes)
        with self._writing() as (connection, state):
            held: dict[str, dict[str, Any]] = {}
            for some in _batches(list(changes)):
                found = connection.execute(f"SELECT id, attributes FROM rows WHERE id IN ({_marks(some)})", some)
                held |= {row_id: json.loads(attributes) for row_id, attributes in found}
            if unknown := [row_id for row_id in changes if row_id not in held]:
                raise UnknownRow(unknown)
            new = {row_id: held[row_id] | dict(given) for row_id, given in changes.items()}
            # Without its digest a row is embedded anew when its source is indexed again: the source decides then.
            rows = [
                (_as_json(attributes), state.sequence + 1, row_id)
                for row_id, attributes in new.items()
                if attributes != held[row_id]
            ]
            connection.executemany("UPDATE rows SET attributes = ?, updated = ?, digest = '' WHERE id = ?", rows)
            if rows:
                _advance(connection, state)
        return len(rows)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove rows; returns how many there were. When it returns, they are gone for good."""
        wanted = [(row_id,) for row_id in dict.fromkeys(ids)]
        with self._writing() as (connection, state):
            sequence = state.sequence + 1
            before = connection.total_changes
            connection.executemany(
                "INSERT INTO gone SELECT slot, id, ? FROM rows WHERE id = ?", [(sequence, *row) for row in wanted]
            )
            removed = connection.total_changes - before
            connection.executemany("DELETE FROM pictures WHERE slot IN (SELECT slot FROM rows WHERE id = ?)", wanted)
            connection.executemany("DELETE FROM rows WHERE id = ?", wanted)
            if removed:
                _advance(connection, state)
        return removed

    def get(self, ids: Sequence[str]) -> list[StoredRow]:
        """Rows by id, in the order of `ids`; those that do not exist are left out."""
        found = {row.id: row for row in self._rows_where("id", ids)}
        return [found[row_id] for row_id in ids if row_id in found]

    def at(self, slots: Sequence[int]) -> dict[int, StoredRow]:
        """Slot -> row; one that has been replaced since is shown as it is now, one that has gone is left out."""
        found = {row.slot: row for row in self._rows_where("slot", slots)}
        for some in _batches([slot for slot in slots if slot not in found]):
            moved = dict(self._database.read(f"SELECT id, slot FROM gone WHERE slot IN ({_marks(some)})", some))
            found |= {moved[row.id]: replace(row, slot=moved[row.id]) for row in self._rows_where("id", list(moved))}
        return found

    def picture(self, row_id: str) -> bytes | None:
        """Encoded picture of a row, or None."""
        found = self._database.read(
            "SELECT bytes FROM pictures WHERE slot = (SELECT slot FROM rows WHERE id = ?)", (row_id,)
        )
        return found[0][0] if found else None

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""
        return {str(row_id): str(digest) for row_id, digest in self._database.read("SELECT id, digest FROM rows")}

    def changes(self, since: State | None) -> Changes:
        """What happened since a state; everything without one, or since a state that the catalogue never was in."""
        with self._database.lent() as connection:
            connection.execute("BEGIN")  # one snapshot for all three
            try:
                state = State(*connection.execute(_STATE).fetchone())
                complete = since is None or not _went_through(connection, state, since)
                sequence = -1 if since is None or complete else since.sequence
                # The plus keeps SQLite from walking through all slots for the order's sake where few rows are new.
                newer = "" if complete else "WHERE sequence > ?1 OR updated > ?1 ORDER BY +slot"
                found = f"SELECT {_STORED} FROM rows {newer or 'ORDER BY slot'}"
                rows = connection.execute(found, () if complete else (sequence,)).fetchall()
                gone = connection.execute("SELECT slot, sequence FROM gone WHERE sequence > ?", (sequence,)).fetchall()
            finally:
                connection.execute("ROLLBACK")
        return Changes(state, complete, list(self._rows(rows)), gone)

    def went_through(self, state: State) -> bool:
        """Whether the catalogue stands where a state says, or came from there by appending to the same files."""
        with self._database.lent() as connection:
            return _went_through(connection, State(*connection.execute(_STATE).fetchone()), state)

    def vectors(self, kind: str, generation: int | None = None) -> VectorFile:
        """The file of one kind of vectors.

        Raises:
            ConfigError: The catalogue has no such kind.
        """
        if kind not in self.info.kinds:
            raise ConfigError(f"this catalogue has no {kind!r} vectors; it has: {', '.join(self.info.kinds)}")
        generation = self.state.generation if generation is None else generation
        return VectorFile(self.folder / "vectors" / f"{generation}-{kind}.f16", self.info.dim)

    def compact(self) -> int:
        """Write the live rows into files of their own and drop the old ones; returns the slots that were freed.

        Readers that have the old files open go on with them.
        """
        with self._writing() as (connection, state):
            live = [slot for (slot,) in connection.execute("SELECT slot FROM rows ORDER BY slot")]
            freed, following = state.next_slot - len(live), state.generation + 1
            for kind in self.info.kinds:
                old = self.vectors(kind, state.generation).open(state.next_slot)
                new = self.vectors(kind, following)
                new.path.unlink(missing_ok=True)  # of a compaction that was killed
                for start in range(0, len(live), 65536):
                    new.write(start, old.gather(np.array(live[start : start + 65536])))
            sync_folder(self.folder / "vectors")
            connection.execute("CREATE TEMP TABLE moved (old INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
            connection.executemany("INSERT INTO moved VALUES (?, ?)", zip(live, range(len(live)), strict=True))
            for table in ("rows", "pictures"):  # by way of negative slots, as slots are unique
                connection.execute(f"UPDATE {table} SET slot = -1 - (SELECT new FROM moved WHERE old = slot)")
                connection.execute(f"UPDATE {table} SET slot = -1 - slot")
            connection.execute("DELETE FROM gone")
            # A search that began before pages on as of then: a row that was replaced since must not vanish from it.
            connection.execute("UPDATE rows SET sequence = created, updated = NULL")
            connection.execute("DELETE FROM history")
            _advance(connection, replace(state, generation=following, next_slot=len(live)))
            connection.execute("DROP TABLE moved")
        self._remove_old_files()
        return freed

    def verify(self) -> list[str]:
        """Look for what is wrong: SQLite's own check, slots, lengths and checksums of all vectors. Empty is clean."""
        problems = [str(row[0]) for row in self._database.read("PRAGMA integrity_check") if row[0] != "ok"]
        state = self.state
        rows = self._database.read("SELECT id, slot, checksums FROM rows ORDER BY slot")
        gone = {slot for (slot,) in self._database.read("SELECT slot FROM gone")}
        slots = [slot for _, slot, _ in rows]
        if slots and not 0 <= slots[0] <= slots[-1] < state.next_slot:
            problems.append(f"slots reach from {slots[0]} to {slots[-1]}, but only {state.next_slot} are in use")
        if len(slots) + len(gone) != state.next_slot or gone & set(slots):
            problems.append(f"{len(slots)} live and {len(gone)} gone slots do not add up to {state.next_slot}")
        for number, kind in enumerate(self.info.kinds):
            try:
                held = self.vectors(kind, state.generation).open(state.next_slot)
            except CatalogueError as error:
                problems.append(str(error))
                continue
            for row_id, slot, checksums in rows:
                crc = json.loads(checksums)[number]
                if crc is not None and crc_of(held.gather(np.array([slot]))[0]) != crc:
                    problems.append(f"row {row_id!r}: its {kind} vector (slot {slot}) has changed on the disk")
        return problems

    def close(self) -> None:
        """Let go of the database; the folder can be opened again."""
        self._database.close()

    def _rows_where(self, column: str, keys: Sequence[Any]) -> Iterator[StoredRow]:
        """Live rows that have one of some ids or slots, in any order."""
        for some in _batches(keys):
            yield from self._rows(
                self._database.read(f"SELECT {_STORED} FROM rows WHERE {column} IN ({_marks(some)})", some)
            )

    def _rows(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[StoredRow]:
        """Rows as `_STORED` selects them; their attributes' JSON is read in one go."""
        attributes = json.loads(f"[{','.join([row[5] for row in rows])}]")
        for (row_id, slot, sequence, product_id, title, _, crcs), values in zip(rows, attributes, strict=True):
            yield StoredRow(row_id, slot, sequence, product_id, title, values, self._kinds(crcs))

    def _kinds(self, checksums: str) -> tuple[str, ...]:
        """Kinds of vectors that a row has."""
        if "null" not in checksums:
            return self.info.kinds
        return tuple(kind for kind, crc in zip(self.info.kinds, json.loads(checksums), strict=True) if crc is not None)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, State]]:
        """The write lock, and where the catalogue stands; all or nothing."""
        with self._database.writing() as connection:
            yield connection, State(*connection.execute(_STATE).fetchone())

    def _remove_old_files(self) -> None:
        current = self.state.generation
        for path in (self.folder / "vectors").glob("*-*.f16"):
            if int(path.name.split("-")[0]) < current:
                path.unlink(missing_ok=True)


def _advance(connection: sqlite3.Connection, state: State) -> None:
    """Number a change, from the state before it in all but its files and slots."""
    sequence = state.sequence + 1
    connection.execute(
        "UPDATE state SET generation = ?, next_slot = ?, sequence = ?", (state.generation, state.next_slot, sequence)
    )
    connection.execute("INSERT INTO history VALUES (?, ?)", (sequence, _new_token()))


def _new_token() -> int:
    return secrets.randbits(63)


def _went_through(connection: sqlite3.Connection, now: State, before: State) -> bool:
    found = connection.execute("SELECT token FROM history WHERE sequence = ?", (before.sequence,)).fetchone()
    return now.generation == before.generation and found == (before.token,)


def _as_json(attributes: Mapping[str, Any]) -> str:
    return json.dumps(dict(attributes), ensure_ascii=False, default=str)


def _batches(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many keys at a time as one statement may bind."""
    for start in range(0, len(keys), 500):
        yield keys[start : start + 500]


def _marks(keys: Sequence[Any]) -> str:
    return ", ".join("?" * len(keys))


def _read_info(folder: Path) -> CatalogueInfo:
    path = folder / "catalogue.json"
    if not path.exists():
        raise CatalogueError(f"no catalogue in {folder}; `dualtower index MODEL --out {folder}` makes one")
    try:
        info = from_dict(CatalogueInfo, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    except (ValueError, ConfigError) as error:
        raise CatalogueError(f"{path} is broken: {error}") from error
    if info.format != FORMAT:
        raise CatalogueError(f"{path} is of format {info.format}, this version reads {FORMAT}; index into a new folder")
    return info
