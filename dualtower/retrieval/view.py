"""What a search sees: one state of the catalogue, in arrays over slots.

A view is built from the catalogue's rows once, then follows its changes, and is kept in the catalogue's cache so that
the next start is quick. It remembers when a row came and went, so that a later page of results can be computed as of
the first one.
"""

from __future__ import annotations

import json
import threading
import zipfile
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.errors import CatalogueError
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.columns import Columns
from dualtower.retrieval.filters import Filter
from dualtower.retrieval.nearest import Chosen
from dualtower.retrieval.records import Changes, State, kinds_of
from dualtower.retrieval.vectors import VectorReader
from dualtower.types import product_code

__all__ = ["View", "ViewKeeper"]

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class View:
    """One state of a catalogue. Arrays are ``[N]`` over slots.

    Attributes:
        state: Which one.
        vectors: Kind -> reader of float16 ``[N, D]``.
        has: Kind -> which rows have such a vector, bool.
        products: `product_code` of each row, int64.
        born: Sequence number with which a row came; `NEVER` for slots that no row of this view ever had.
        died: Sequence number with which it went, `NEVER` while it lives.
        columns: Attributes.
    """

    state: State
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

    def current(self) -> View:
        """The newest view."""
        if self._view is not None and self._view.state == self.catalogue.state:
            return self._view
        with self._lock:
            for _ in range(3):  # a compaction may take the files away between two looks
                try:
                    self._view = _newest(self.catalogue, self._view or _load(self.catalogue))
                    return self._view
                except CatalogueError as error:
                    failure = error
            raise failure

    def save(self) -> None:
        """Keep the newest view in the cache, for a quick start."""
        _save(self.current(), self.catalogue.folder / "cache" / "view.npz")


def _newest(catalogue: Catalogue, before: View | None) -> View:
    """A new view with the changes; the old one stays as it was for those who use it."""
    changes = catalogue.changes(before.state if before else None)
    if changes.complete:
        before = None
    if before is not None and before.state == changes.state:
        return before
    return _extended(catalogue, before or _empty(catalogue), changes)


def _extended(catalogue: Catalogue, before: View, changes: Changes) -> View:
    size, known = changes.state.next_slot, len(before.born)
    products = np.concatenate([before.products, np.zeros(size - known, np.int64)])
    born = np.concatenate([before.born, np.full(size - known, NEVER)])
    died = np.concatenate([before.died, np.full(size - known, NEVER)])
    has = {kind: np.concatenate([flags, np.zeros(size - known, bool)]) for kind, flags in before.has.items()}
    attributes: list[dict] = [{} for _ in range(size - known)]
    updated = {row.slot: row.attributes for row in changes.rows if row.slot < known}
    for row in changes.rows:
        if row.slot < known:
            continue
        products[row.slot], born[row.slot] = product_code(row.product_id), row.sequence
        attributes[row.slot - known] = row.attributes
        for kind in row.kinds:
            has[kind][row.slot] = True
    for slot, sequence in changes.gone:
        died[slot] = sequence
    columns = before.columns.copy()
    columns.replace(updated)
    columns.extend(attributes)
    return View(changes.state, _readers(catalogue, changes.state), has, products, born, died, columns)


def _empty(catalogue: Catalogue) -> View:
    none, columns = np.empty(0, np.int64), Columns(kinds_of(catalogue.info))
    has = {kind: np.empty(0, bool) for kind in catalogue.info.kinds}
    return View(State(-1, 0, -1, 0), {}, has, none, none, none, columns)


def _readers(catalogue: Catalogue, state: State) -> dict[str, VectorReader]:
    return {kind: catalogue.vectors(kind, state.generation).open(state.next_slot) for kind in catalogue.info.kinds}


def _save(view: View, path: Path) -> None:
    about: dict[str, Any] = {"state": list(astuple(view.state)), "kinds": list(view.has)}
    arrays: dict[str, Any] = {"products": view.products, "born": view.born, "died": view.died}
    arrays |= {f"has/{kind}": flags for kind, flags in view.has.items()}
    arrays |= {f"column/{name}": array for name, array in view.columns.arrays().items()}
    about |= {"vocabularies": view.columns.vocabularies()}
    new = path.with_name(".view.new.npz")
    try:
        np.savez(new, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        new.replace(path)
    except OSError as error:
        raise CatalogueError(f"cannot write {path}: {error}") from error


def _load(catalogue: Catalogue) -> View | None:
    """The view in the cache; None where there is none that is whole and of the catalogue's generation."""
    try:
        with np.load(catalogue.folder / "cache" / "view.npz", allow_pickle=False) as kept:  # zip checks its checksums
            about = json.loads(kept["about"].tobytes())
            state = State(*about["state"])
            if not catalogue.went_through(state):
                return None
            columns = Columns(kinds_of(catalogue.info))
            columns.restore(
                {name.removeprefix("column/"): kept[name] for name in kept.files if name.startswith("column/")},
                about["vocabularies"],
            )
            has = {kind: kept[f"has/{kind}"] for kind in catalogue.info.kinds}
            arrays = kept["products"], kept["born"], kept["died"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return View(state, _readers(catalogue, state), has, *arrays, columns)
