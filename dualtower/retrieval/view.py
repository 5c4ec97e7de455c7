"""What a search sees: one state of the catalogue, in arrays over slots.

A view is built from the catalogue's rows once, then follows its changes, and is kept in the catalogue's cache so that
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

from dualtower.errors import CatalogueError, DualTowerError
from dualtower.files import atomic_write
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.columns import Columns
from dualtower.retrieval.filters import Filter
from dualtower.retrieval.nearest import Chosen
from dualtower.retrieval.records import CatalogueInfo, State, kinds_in, kinds_of
from dualtower.retrieval.snapshot import Snapshot
from dualtower.retrieval.vectors import VectorReader
from dualtower.types import product_code

__all__ = ["View", "ViewKeeper"]

log = logging.getLogger(__name__)
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class View:
    """One state of a catalogue. Arrays are ``[N]`` over slots.

    Attributes:
        state: Which one.
        numbers: Of the version of a row in each slot, ascending, int64.
        vectors: Kind -> reader of float16 ``[N, D]``.
        has: Kind -> which rows have such a vector, bool.
        products: `product_code` of each row, int64.
        born: Sequence number with which a row came.
        died: Sequence number with which it went, `NEVER` while it lives.
        columns: Attributes.
    """

    state: State
    numbers: np.ndarray
    vectors: dict[str, VectorReader]
    has: dict[str, np.ndarray]
    products: np.ndarray
    born: np.ndarray
    died: np.ndarray
    columns: Columns

    def __len__(self) -> int:
        return int(self.live.sum())

    @cached_property
    def live(self) -> np.ndarray:
        """Which slots hold a row, bool ``[N]``."""
        return self.live_at(self.state.sequence)

    @cached_property
    def everything(self) -> dict[str, Chosen]:
        """Kind -> all live rows that have such a vector."""
        return {kind: Chosen(self.live & has, filtered=False) for kind, has in self.has.items()}

    def live_at(self, sequence: int) -> np.ndarray:
        """Which slots held a row as of a sequence number, as far as this view still knows them, bool ``[N]``."""
        return (self.born <= sequence) & (self.died > sequence)

    def slots_of(self, numbers: np.ndarray) -> np.ndarray:
        """Slots of some versions; -1 for those that this view does not know."""
        if not len(self.numbers):
            return np.full(len(numbers), -1)
        slots = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[slots] == numbers, slots, -1)

    def chosen(self, kind: str, part: Filter | None = None, sequence: int | None = None) -> Chosen:
        """Rows that have a kind of vector, satisfy a filter, and were live as of a sequence number (default: now)."""
        now = sequence is None or sequence == self.state.sequence
        rows = self.everything[kind] if now else Chosen(self.live_at(sequence or 0) & self.has[kind], filtered=False)
        return rows if part is None else Chosen(rows.mask & self.columns.satisfies(part), filtered=True)


class ViewKeeper:
    """Gives the newest view of a catalogue; safe to use from many threads.

    What came and went since the last view is quickly added to it. The view of another generation takes longer: it is
    made beside the searches, which go on with the one before, as of when it was taken, unless they have to see more.

    Args:
        catalogue: The folder.
        prepare: Called with a view that is made beside the searches, before they get it.
    """

    def __init__(self, catalogue: Catalogue, prepare: Callable[[View], None] | None = None) -> None:
        self.catalogue = catalogue
        self._prepare = prepare or (lambda view: None)
        self._lock = threading.Lock()
        self._view: View | None = None
        self._failed = False

    def current(self, at_least: int = 0) -> View:
        """The newest view, or one before a compaction that shows all that was written through this catalogue object.

        Args:
            at_least: Sequence number of the oldest state that will do.
        """
        view, state = self._view, self.catalogue.state
        if view is not None and view.state == state:
            return view
        compacted = view is not None and view.state.generation < state.generation and not self._failed
        if view is not None and compacted and view.state.sequence >= max(at_least, self.catalogue.written):
            if self._lock.acquire(blocking=False):
                threading.Thread(target=self._renew_beside, daemon=True, name="view").start()
            return view
        with self._lock:
            return self._renew()

    def newest(self) -> View:
        """The view of the present state, waited for where it is being made."""
        return self.current(self.catalogue.state.sequence)

    @contextlib.contextmanager
    def held(self) -> Iterator[tuple[View, Snapshot]]:
        """The newest view and the snapshot that it is of: what it shows is there until this ends."""
        with contextlib.ExitStack() as stack:
            with self._lock:
                snapshot = stack.enter_context(self.catalogue.snapshot())
                view = _newest(self.catalogue, snapshot, self._view or _load(self.catalogue, snapshot))
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
        with self.catalogue.snapshot() as snapshot:
            view = _newest(self.catalogue, snapshot, self._view or _load(self.catalogue, snapshot))
        if view is not self._view:  # else another thread has made it meanwhile
            prepare(view)
        self._view, self._failed = view, False
        return view

    def is_kept(self) -> bool:
        """Whether the cache holds a view that is whole, and of this catalogue."""
        with self.catalogue.snapshot() as snapshot:
            return _load(self.catalogue, snapshot) is not None

    def save(self) -> None:
        """Keep the newest view in the cache, for a quick start."""
        _save(self.newest(), self.catalogue.folder / "cache" / "view.npz")


def _newest(catalogue: Catalogue, snapshot: Snapshot, before: View | None) -> View:
    """The view of a snapshot, from an older one where there is one; that stays as it was for those who use it."""
    if before is not None and not snapshot.has_been(before.state):
        before = None  # another catalogue has been put in its place
    if before is not None and before.state == snapshot.state:
        return before
    if before is not None and before.state.generation != snapshot.state.generation:
        before = _compacted(before, snapshot)
    return _extended(before or _empty(catalogue), snapshot, catalogue.info)


def _compacted(before: View, snapshot: Snapshot) -> View | None:
    """An older view in the order of the new generation; None where it does not know all that is left of its rows."""
    numbers, born = snapshot.numbers(below=before.state.next_number)
    slots = before.slots_of(numbers)
    if (slots < 0).any():
        return None
    return replace(
        before,
        numbers=numbers,
        has={kind: flags[slots] for kind, flags in before.has.items()},
        products=before.products[slots],
        born=born,
        died=before.died[slots],
        columns=before.columns.take(slots),
    )


def _extended(before: View, snapshot: Snapshot, info: CatalogueInfo) -> View:
    """A view and what came and died since. The arrays have their size from the start, as memory is scarce."""
    state, known = snapshot.state, len(before.numbers)
    new = snapshot.count(first=before.state.next_number)
    if known + new != state.next_slot:
        raise CatalogueError(f"{known + new} versions of rows for {state.next_slot} vectors: a damaged catalogue")
    numbers, born, products, died = (
        np.concatenate([old, np.full(new, NEVER)])
        for old in (before.numbers, before.born, before.products, before.died)
    )
    has = {kind: np.concatenate([flags, np.zeros(new, bool)]) for kind, flags in before.has.items()}
    columns = before.columns.extended(_rows(snapshot, before, info, (numbers, born, products), has), new)
    updates = snapshot.updates(since=before.state.sequence, below=before.state.next_number)
    slots = before.slots_of(np.array([number for number, _ in updates], np.int64)).tolist()
    columns.replace({slot: json.loads(told) for slot, (_, told) in zip(slots, updates, strict=True)})
    view = View(state, numbers, dict(snapshot.vectors), has, products, born, died, columns)
    gone = np.array(snapshot.deaths(since=before.state.sequence), np.int64).reshape(-1, 2)
    died[view.slots_of(gone[:, 0])] = gone[:, 1]
    return view


def _rows(
    snapshot: Snapshot, before: View, info: CatalogueInfo, arrays: tuple[np.ndarray, ...], has: dict[str, np.ndarray]
) -> Iterator[list[dict[str, Any]]]:
    """Fill arrays with what came since a view, and give its attributes, some thousand rows at a time."""
    start, first = len(before.numbers), before.state.next_number
    numbers, born, products = arrays
    for rows in snapshot.versions("number, sequence, product_id, attributes, checksums", first=first):
        part = slice(start, start + len(rows))
        numbers[part], born[part] = [row[0] for row in rows], [row[1] for row in rows]
        products[part] = [product_code(row[2]) for row in rows]
        kinds = [kinds_in(row[4], info) for row in rows]
        for kind, flags in has.items():
            flags[part] = [kind in of_row for of_row in kinds]
        try:
            yield json.loads(f"[{','.join([row[3] for row in rows])}]")
        except ValueError as error:
            raise CatalogueError("attributes of a row have changed on the disk; see `dualtower verify`") from error
        start = part.stop


def _empty(catalogue: Catalogue) -> View:
    none, columns = np.empty(0, np.int64), Columns(kinds_of(catalogue.info))
    has = {kind: np.empty(0, bool) for kind in catalogue.info.kinds}
    return View(State(-1, 0, -1, 0, 0), none, {}, has, none, none, none, columns)


def _save(view: View, path: Path) -> None:
    about: dict[str, Any] = {"state": astuple(view.state), "kinds": list(view.has)}
    arrays: dict[str, Any] = {"numbers": view.numbers, "products": view.products, "born": view.born, "died": view.died}
    arrays |= {f"has/{kind}": flags for kind, flags in view.has.items()}
    arrays |= {f"column/{name}": array for name, array in view.columns.arrays().items()}
    try:
        path.parent.mkdir(exist_ok=True)  # and not its parents: a catalogue that is gone stays gone
        with atomic_write(path) as partial, partial.open("wb") as stream:
            np.savez(stream, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    except OSError as error:
        raise CatalogueError(f"cannot write {path}: {error}") from error


def _load(catalogue: Catalogue, snapshot: Snapshot) -> View | None:
    """The view in the cache; None where there is none that is whole and was once the catalogue's."""
    path = catalogue.folder / "cache" / "view.npz"
    try:
        with zipfile.ZipFile(path) as archive:  # numpy compares no checksum of an array that it reads in part
            if broken := archive.testzip():
                raise ValueError(f"its {broken} has changed on the disk")
        with np.load(path, allow_pickle=False) as kept:
            about = json.loads(kept["about"].tobytes())
            state = State(*about["state"])
            if not snapshot.has_been(state):
                return None
            columns = Columns(kinds_of(catalogue.info))
            columns.restore(
                {name.removeprefix("column/"): kept[name] for name in kept.files if name.startswith("column/")}
            )
            has = {kind: kept[f"has/{kind}"] for kind in catalogue.info.kinds}
            numbers, products, born, died = (kept[name] for name in ("numbers", "products", "born", "died"))
            if {len(array) for array in (numbers, products, born, died, *has.values())} != {state.next_slot}:
                raise ValueError("its arrays differ in length")
    except FileNotFoundError:
        return None
    except Exception as error:  # zip and numpy have no common error for what a damaged file makes them do
        log.warning("%s cannot be used, and is made anew: %r", path, error)
        return None
    return View(state, numbers, dict(snapshot.vectors), has, products, born, died, columns)
