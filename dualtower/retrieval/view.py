"""What a search sees: one state of the catalogue, in arrays over slots.

A view is built from the catalogue's rows once, then follows its changes, and is kept in the catalogue's cache so that
the next start is quick. It remembers when a row came and went, so that a later page of results can be computed as of
the first one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.errors import CatalogueError
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.columns import Columns
from dualtower.retrieval.filters import Filter
from dualtower.retrieval.nearest import Chosen
from dualtower.retrieval.records import CatalogueInfo, State, kinds_in, kinds_of
from dualtower.retrieval.snapshot import Snapshot
from dualtower.retrieval.vectors import VectorReader
from dualtower.types import product_code

__all__ = ["View", "ViewKeeper"]

NEVER = np.iinfo(np.int64).max
log = logging.getLogger(__name__)
_VIEWED = "number, sequence, product_id, attributes, checksums"


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

    Args:
        catalogue: The folder.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._lock = threading.Lock()
        self._view: View | None = None

    def current(self, at_least: int = 0) -> View:
        """The newest view."""
        if self._view is not None and self._view.state == self.catalogue.state:
            return self._view
        with self._lock, self.catalogue.snapshot() as snapshot:
            self._view = _newest(self.catalogue, snapshot, self._view or _load(self.catalogue, snapshot))
            return self._view

    def save(self) -> None:
        """Keep the newest view in the cache, for a quick start."""
        _save(self.current(), self.catalogue.folder / "cache" / "view.npz")


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
    """A view and what came and died since."""
    parts = [_block(rows, info) for rows in snapshot.versions(_VIEWED, first=before.state.next_number)]
    numbers, born, products = (
        np.concatenate([old, *(part[i] for part in parts)])
        for i, old in enumerate((before.numbers, before.born, before.products))
    )
    has = {kind: np.concatenate([flags, *(part[3][kind] for part in parts)]) for kind, flags in before.has.items()}
    if len(numbers) != snapshot.state.next_slot:
        raise CatalogueError(
            f"{len(numbers)} versions of rows for {snapshot.state.next_slot} vectors: a damaged catalogue"
        )
    died = np.concatenate([before.died, np.full(len(numbers) - len(before.died), NEVER)])
    columns = before.columns.extended([part[4] for part in parts])
    updates = snapshot.updates(since=before.state.sequence, below=before.state.next_number)
    slots = before.slots_of(np.array([number for number, _ in updates], np.int64)).tolist()
    columns.replace({slot: json.loads(told) for slot, (_, told) in zip(slots, updates, strict=True)})
    view = View(snapshot.state, numbers, dict(snapshot.vectors), has, products, born, died, columns)
    gone = np.array(snapshot.deaths(since=before.state.sequence), np.int64).reshape(-1, 2)
    died[view.slots_of(gone[:, 0])] = gone[:, 1]
    return view


def _block(rows: Sequence[tuple[Any, ...]], info: CatalogueInfo) -> tuple[Any, ...]:
    """Arrays of some versions, as `_VIEWED` selects them, and their attributes."""
    numbers, born, products, attributes, checksums = zip(*rows, strict=True)
    kinds = [kinds_in(crcs, info) for crcs in checksums]
    has = {kind: np.array([kind in of_row for of_row in kinds]) for kind in info.kinds}
    codes = np.array([product_code(product) for product in products], np.int64)
    return np.array(numbers, np.int64), np.array(born, np.int64), codes, has, json.loads(f"[{','.join(attributes)}]")


def _empty(catalogue: Catalogue) -> View:
    none, columns = np.empty(0, np.int64), Columns(kinds_of(catalogue.info))
    has = {kind: np.empty(0, bool) for kind in catalogue.info.kinds}
    return View(State(-1, 0, -1, 0, 0), none, {}, has, none, none, none, columns)


def _save(view: View, path: Path) -> None:
    about: dict[str, Any] = {"state": astuple(view.state), "kinds": list(view.has)}
    arrays: dict[str, Any] = {"numbers": view.numbers, "products": view.products, "born": view.born, "died": view.died}
    arrays |= {f"has/{kind}": flags for kind, flags in view.has.items()}
    arrays |= {f"column/{name}": array for name, array in view.columns.arrays().items()}
    about |= {"vocabularies": view.columns.vocabularies()}
    new = path.with_name(f".view.{os.getpid()}.new.npz")
    try:
        path.parent.mkdir(exist_ok=True)
        np.savez(new, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        new.replace(path)
    except OSError as error:
        raise CatalogueError(f"cannot write {path}: {error}") from error
    finally:
        new.unlink(missing_ok=True)


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
                {name.removeprefix("column/"): kept[name] for name in kept.files if name.startswith("column/")},
                about["vocabularies"],
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
