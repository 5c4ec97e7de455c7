"""What a search sees: one state of the catalog, in arrays over slots.

A view is built from the catalog's rows once, then follows its changes, and is kept in the catalog's cache so that
the next start is quick. It remembers when a row came and went, so that a later page of results can be computed as of
the first one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.errors import CatalogError, DualTowerError
from dualtower.files import atomic_write
from dualtower.search.ann.index import RowSelection
from dualtower.search.filters import Filter
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.columns import Columns
from dualtower.search.local.snapshot import Snapshot
from dualtower.search.local.vector_file import VectorReader
from dualtower.search.records import CatalogInfo, State, attribute_types, vector_names_in
from dualtower.types import product_code

__all__ = ["View", "ViewKeeper"]

log = logging.getLogger(__name__)
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class View:
    """One state of a catalog. Arrays are ``[N]`` over slots.

    Attributes:
        state: Which one.
        numbers: Numbers of the version of a row in each slot, ascending, int64.
        vectors: Kind -> reader of float16 ``[N, D]``.
        has: Kind -> which rows have such a vector, bool.
        product_codes: `product_code` of each row, int64.
        added_at: Sequence number with which a row came.
        removed_at: Sequence number with which it went, `NEVER` while it lives.
        columns: Attributes.
    """

    state: State
    numbers: np.ndarray
    vectors: dict[str, VectorReader]
    has: dict[str, np.ndarray]
    product_codes: np.ndarray
    added_at: np.ndarray
    removed_at: np.ndarray
    columns: Columns

    def __len__(self) -> int:
        return int(self.live.sum())

    @cached_property
    def live(self) -> np.ndarray:
        """Which slots hold a row, bool ``[N]``."""
        return self.live_at(self.state.sequence)

    @cached_property
    def everything(self) -> dict[str, RowSelection]:
        """Kind -> all live rows that have such a vector."""
        return {vector_name: RowSelection(self.live & has, filtered=False) for vector_name, has in self.has.items()}

    def live_at(self, sequence: int) -> np.ndarray:
        """Which slots held a row as of a sequence number, as far as this view still knows them, bool ``[N]``."""
        return (self.added_at <= sequence) & (self.removed_at > sequence)

    def slots_of(self, numbers: np.ndarray) -> np.ndarray:
        """Slots of some versions; -1 for those that this view does not know."""
        if not len(self.numbers):
            return np.full(len(numbers), -1)
        slots = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[slots] == numbers, slots, -1)

    def selection(self, vector_name: str, part: Filter | None = None, sequence: int | None = None) -> RowSelection:
        """Rows that have a kind of vector, satisfy a filter, and were live as of a sequence number (default: now)."""
        now = sequence is None or sequence == self.state.sequence
        rows = (
            self.everything[vector_name]
            if now
            else RowSelection(self.live_at(sequence or 0) & self.has[vector_name], filtered=False)
        )
        return rows if part is None else RowSelection(rows.mask & self.columns.satisfies(part), filtered=True)


class ViewKeeper:
    """Gives the newest view of a catalog; safe to use from many threads.

    What came and went since the last view is quickly added to it. The view of another generation takes longer: it is
    made beside the searches, which go on with the one before, as of when it was taken, unless they have to see more.

    Args:
        catalog: The folder.
        prepare: Called with a view that is made beside the searches, before they get it.
    """

    def __init__(self, catalog: Catalog, prepare: Callable[[View], None] | None = None) -> None:
        self.catalog = catalog
        self._prepare = prepare or (lambda view: None)
        self._lock = threading.Lock()
        self._view: View | None = None
        self._failed = False

    def current(self, at_least: int = 0) -> View:
        """The newest view, or one before a compaction that shows all that was written through this catalog object.

        Args:
            at_least: Sequence number of the oldest state that will do.
        """
        view, state = self._view, self.catalog.state
        if view is not None and view.state == state:
            return view
        compacted = view is not None and view.state.generation < state.generation and not self._failed
        if view is not None and compacted and view.state.sequence >= max(at_least, self.catalog.written):
            if self._lock.acquire(blocking=False):
                threading.Thread(target=self._renew_beside, daemon=True, name="view").start()
            return view
        with self._lock:
            return self._renew()

    def newest(self) -> View:
        """The view of the present state, waited for where it is being made."""
        return self.current(self.catalog.state.sequence)

    @contextlib.contextmanager
    def held(self) -> Iterator[tuple[View, Snapshot]]:
        """The newest view and the snapshot that it is of: what it shows is there until this ends."""
        with contextlib.ExitStack() as stack:
            with self._lock:
                snapshot = stack.enter_context(self.catalog.snapshot())
                view = _newest(self.catalog, snapshot, self._view or _load(self.catalog, snapshot))
                self._view, self._failed = view, False
            yield view, snapshot

    def _renew_beside(self) -> None:
        """Make the next view in a thread of its own, which has been given the lock."""
        try:
            self._renew(self._prepare)
        except Exception as error:
            log.error("%s", error, exc_info=not isinstance(error, DualTowerError))
            self._failed = True  # the next search shall wait, and say it
        finally:
            self._lock.release()

    def _renew(self, prepare: Callable[[View], None] = lambda view: None) -> View:
        with self.catalog.snapshot() as snapshot:
            view = _newest(self.catalog, snapshot, self._view or _load(self.catalog, snapshot))
        if view is not self._view:  # else another thread has made it meanwhile
            prepare(view)
        self._view, self._failed = view, False
        return view

    def is_kept(self) -> bool:
        """Whether the cache holds a view that is whole, and of this catalog."""
        with self.catalog.snapshot() as snapshot:
            return _load(self.catalog, snapshot) is not None

    def save(self) -> None:
        """Keep the newest view in the cache, for a quick start."""
        _save(self.newest(), self.catalog.folder / "cache" / "view.npz")


def _newest(catalog: Catalog, snapshot: Snapshot, before: View | None) -> View:
    """The view of a snapshot, from an older one where there is one; that stays as it was for those who use it."""
    if before is not None and not snapshot.has_been(before.state):
        before = None  # another catalog has been put in its place
    if before is not None and before.state == snapshot.state:
        return before
    if before is not None and before.state.generation != snapshot.state.generation:
        before = _compacted(before, snapshot)
    return _extended(before or _empty(catalog), snapshot, catalog.info)


def _compacted(before: View, snapshot: Snapshot) -> View | None:
    """An older view in the order of the new generation; None where it does not know all that is left of its rows."""
    numbers, added_at = snapshot.numbers(below=before.state.next_number)
    slots = before.slots_of(numbers)
    if (slots < 0).any():
        return None
    return replace(
        before,
        numbers=numbers,
        has={vector_name: flags[slots] for vector_name, flags in before.has.items()},
        product_codes=before.product_codes[slots],
        added_at=added_at,
        removed_at=before.removed_at[slots],
        columns=before.columns.take(slots),
    )


def _extended(before: View, snapshot: Snapshot, info: CatalogInfo) -> View:
    """A view and what came and died since. The arrays have their size from the start, as memory is scarce."""
    state, known = snapshot.state, len(before.numbers)
    new = snapshot.count(first=before.state.next_number)
    if known + new != state.next_slot:
        raise CatalogError(f"{known + new} versions of rows for {state.next_slot} vectors: a damaged catalog")
    numbers, added_at, product_codes, removed_at = (
        np.concatenate([old, np.full(new, NEVER)])
        for old in (before.numbers, before.added_at, before.product_codes, before.removed_at)
    )
    has = {vector_name: np.concatenate([flags, np.zeros(new, bool)]) for vector_name, flags in before.has.items()}
    columns = before.columns.extended(_rows(snapshot, before, info, (numbers, added_at, product_codes), has), new)
    updates = snapshot.updates(since=before.state.sequence, below=before.state.next_number)
    slots = before.slots_of(np.array([number for number, _ in updates], np.int64)).tolist()
    columns.replace({slot: json.loads(attributes) for slot, (_, attributes) in zip(slots, updates, strict=True)})
    view = View(state, numbers, dict(snapshot.vectors), has, product_codes, added_at, removed_at, columns)
    tombstones = np.array(snapshot.removals(since=before.state.sequence), np.int64).reshape(-1, 2)
    removed_at[view.slots_of(tombstones[:, 0])] = tombstones[:, 1]
    return view


def _rows(
    snapshot: Snapshot, before: View, info: CatalogInfo, arrays: tuple[np.ndarray, ...], has: dict[str, np.ndarray]
) -> Iterator[list[dict[str, Any]]]:
    """Fill arrays with what came since a view, and give its attributes, some thousand rows at a time."""
    start, first = len(before.numbers), before.state.next_number
    numbers, added_at, product_codes = arrays
    for rows in snapshot.versions("number, sequence, product_id, attributes, checksums", first=first):
        part = slice(start, start + len(rows))
        numbers[part], added_at[part] = [row[0] for row in rows], [row[1] for row in rows]
        product_codes[part] = [product_code(row[2]) for row in rows]
        vector_names = [vector_names_in(row[4], info) for row in rows]
        for vector_name, flags in has.items():
            flags[part] = [vector_name in of_row for of_row in vector_names]
        try:
            yield json.loads(f"[{','.join([row[3] for row in rows])}]")
        except ValueError as error:
            raise CatalogError("attributes of a row have changed on the disk; see `dualtower verify`") from error
        start = part.stop


def _empty(catalog: Catalog) -> View:
    none, columns = np.empty(0, np.int64), Columns(attribute_types(catalog.info))
    has = {vector_name: np.empty(0, bool) for vector_name in catalog.info.vector_names}
    return View(State(-1, 0, -1, 0, 0), none, {}, has, none, none, none, columns)


def _save(view: View, path: Path) -> None:
    about: dict[str, Any] = {"state": astuple(view.state), "kinds": list(view.has)}
    arrays: dict[str, Any] = {
        "numbers": view.numbers,
        "products": view.product_codes,
        "added_at": view.added_at,
        "removed_at": view.removed_at,
    }
    arrays |= {f"has/{vector_name}": flags for vector_name, flags in view.has.items()}
    arrays |= {f"column/{name}": array for name, array in view.columns.arrays().items()}
    try:
        path.parent.mkdir(exist_ok=True)  # and not its parents: a catalog that is gone stays gone
        with atomic_write(path) as partial, partial.open("wb") as stream:
            np.savez(stream, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    except OSError as error:
        raise CatalogError(f"cannot write {path}: {error}") from error


def _load(catalog: Catalog, snapshot: Snapshot) -> View | None:
    """The view in the cache; None where there is none that is whole and was once the catalog's."""
    path = catalog.folder / "cache" / "view.npz"
    try:
        with zipfile.ZipFile(path) as archive:  # numpy compares no checksum of an array that it reads in part
            if broken := archive.testzip():
                raise ValueError(f"its {broken} has changed on the disk")
        with np.load(path, allow_pickle=False) as kept:
            about = json.loads(kept["about"].tobytes())
            state = State(*about["state"])
            if not snapshot.has_been(state):
                return None
            columns = Columns(attribute_types(catalog.info))
            columns.restore(
                {name.removeprefix("column/"): kept[name] for name in kept.files if name.startswith("column/")}
            )
            has = {vector_name: kept[f"has/{vector_name}"] for vector_name in catalog.info.vector_names}
            numbers, product_codes, added_at, removed_at = (
                kept[name] for name in ("numbers", "products", "added_at", "removed_at")
            )
            if {len(array) for array in (numbers, product_codes, added_at, removed_at, *has.values())} != {
                state.next_slot
            }:
                raise ValueError("its arrays differ in length")
    except FileNotFoundError:
        return None
    except Exception as error:  # zip and numpy have no common error for what a damaged file makes them do
        log.warning("%s cannot be used, and is made anew: %r", path, error)
        return None
    return View(state, numbers, dict(snapshot.vectors), has, product_codes, added_at, removed_at, columns)
