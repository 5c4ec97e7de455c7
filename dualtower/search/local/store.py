"""The store on this machine: a catalog folder, the index over it, and the search."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.errors import DualTowerError
from dualtower.search.ann.index import Index, build_index, faiss_threads
from dualtower.search.ann.index_cache import index_stamp, load_index, read_index_info, save_index
from dualtower.search.ann.tuning import calibrate, usual_method
from dualtower.search.filters import parse_filter
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.columns import Counts
from dualtower.search.local.searcher import Searcher
from dualtower.search.local.view import View
from dualtower.search.queries import Page, Query
from dualtower.search.records import CatalogInfo, EmbeddedItem, State, StoredRow, attribute_types

__all__ = ["LocalStore"]

MIN_UNCOVERED, MAX_UNCOVERED = 2000, 20_000
"""Rows, within these bounds a tenth of all, that an index may not cover before it is built anew: each is looked at."""


class LocalStore:
    """One catalog folder, searchable and writable; safe to use from many threads.

    Args:
        folder: The catalog.

    Raises:
        CatalogError: There is none, or it is broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.catalog = Catalog(folder)
        self.searcher = Searcher(self.catalog, self._index, self._prepare)
        self._cache = self.catalog.folder / "cache"
        self._held: dict[str, _Held] = {}
        self._prepared: dict[str, _Held] = {}
        self._lock, self._building = threading.Lock(), threading.Lock()

    @property
    def info(self) -> CatalogInfo:
        """What the catalog is."""
        return self.catalog.info

    def __len__(self) -> int:
        return len(self.catalog)

    def search(self, query: Query) -> Page:
        """See `Searcher.search`."""
        return self.searcher.search(query)

    def search_many(self, queries: Sequence[Query]) -> list[Page | DualTowerError]:
        """See `Searcher.search_many`."""
        return self.searcher.search_many(queries)

    def get(self, ids: Sequence[str]) -> list[StoredRow]:
        """Rows by id, in the order of `ids`; those that do not exist are left out."""
        return self.catalog.get(ids)

    def image(self, row_id: str) -> bytes | None:
        """Encoded image of a row, or None."""
        return self.catalog.image(row_id)

    def vector(self, row_id: str, vector_name: str) -> np.ndarray | None:
        """A row's vector, float32 ``[D]``; None where the row, or this kind of it, does not exist."""
        while rows := [row for row in self.catalog.get([row_id]) if vector_name in row.vector_names]:
            view = self.searcher.views.current(rows[0].sequence)
            (slot,) = view.slots_of(np.array([rows[0].number])).tolist()
            if slot >= 0:  # else it was replaced meanwhile, and dropped
                found: np.ndarray = view.vectors[vector_name].gather(np.array([slot]))[0].astype(np.float32)
                return found
        return None

    def counts(self, where: str = "", *, most: int = 20) -> dict[str, Counts]:
        """What stands in the attributes of the rows that satisfy a filter, see `Columns.counts`."""
        view = self.searcher.views.current()
        part = parse_filter(where, attribute_types(self.info)) if where.strip() else None
        mask = view.live if part is None else view.live & view.columns.satisfies(part)
        return view.columns.counts(np.flatnonzero(mask), most=most)

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""
        return self.catalog.digests()

    def upsert(self, items: Sequence[EmbeddedItem]) -> None:
        """See `Catalog.upsert`."""
        self.catalog.upsert(items)

    def update_attributes(self, changes: Mapping[str, Mapping[str, Any]]) -> int:
        """See `Catalog.update_attributes`."""
        return self.catalog.update_attributes(changes)

    def delete(self, ids: Iterable[str]) -> int:
        """See `Catalog.delete`."""
        return self.catalog.delete(ids)

    def compact(self) -> int:
        """Drop what is gone for good and build the indexes anew; returns the slots that were freed."""
        freed = self.catalog.compact()
        self.rebuild()
        return freed

    def is_stale(self, *, thorough: bool = False) -> bool:
        """Whether an index is missing, damaged or of other rows, or too many rows came since it was built.

        Args:
            thorough: Read the files of the indexes for it, and compare them with their checksums.
        """
        size, came_from = self.catalog.state.next_slot, self.catalog.went_through
        kept = [
            read_index_info(self._cache, vector_name, came_from, thorough=thorough)
            for vector_name in self.info.vector_names
        ]
        return any(index is None or size - index.covered > _may_be_uncovered(index.covered) for index in kept)

    def cache_problems(self) -> list[str]:
        """What of the cache is missing, damaged or of other rows; searches pass it over."""
        kept = {
            vector_name: read_index_info(self._cache, vector_name, self.catalog.went_through, thorough=True)
            for vector_name in self.info.vector_names
        }
        problems = [f"the index of {vector_name} vectors" for vector_name, index in kept.items() if index is None]
        problems += [] if self.searcher.views.is_kept() else ["the view"]
        return [f"{what} in {self._cache} is missing, damaged or of other rows" for what in problems]

    def rebuild(
        self, *, methods: Mapping[str, str] | None = None, recall: float = 0.98, threads: int | None = None
    ) -> None:
        """Build the indexes of all kinds of vectors and keep them in the cache; searches go on meanwhile.

        Args:
            methods: Kind -> one of `dualtower.search.ann.index.METHODS`; default what the size asks for.
            recall: recall@10 to be reached.
            threads: Threads of faiss; default all cores.
        """
        with self._building:
            view = self.searcher.views.newest()
            with faiss_threads(threads):
                for vector_name in self.info.vector_names:
                    method = (methods or {}).get(vector_name) or usual_method(view.state.next_slot)
                    index = build_index(
                        view.vectors[vector_name], vector_name=vector_name, state=view.state, method=method
                    )
                    save_index(calibrate(index, view, recall=recall), self._cache)
            self.searcher.views.save()

    def close(self) -> None:
        """Let go of the folder."""
        self.catalog.close()

    def _index(self, view: View, vector_name: str) -> Index:
        """The index in the cache; where there is none that fits, all vectors in memory."""
        stamp = index_stamp(self._cache, vector_name)
        held = self._held.get(vector_name)
        if held is None or held.state != view.state or not held.serves(view, stamp):
            with self._lock:
                held = self._held[vector_name] = self._renewed(view, vector_name, stamp)
        return held.index

    def _renewed(self, view: View, vector_name: str, stamp: int) -> _Held:
        """What is held, where it serves a view, too, or has been prepared for it; else what does."""
        for held in (self._held.get(vector_name), self._prepared.get(vector_name)):
            if held is not None and held.serves(view, stamp) and self.catalog.went_through(held.state):
                if held is self._prepared.get(vector_name):
                    del self._prepared[vector_name]
                return replace(held, state=view.state) if view.state.sequence > held.state.sequence else held
        prepared = self._prepared.get(vector_name)
        if prepared is not None and prepared.state.generation <= view.state.generation:
            self._prepared.pop(vector_name, None)  # another has taken its place in the cache
        return self._load(view, vector_name, stamp)

    def _prepare(self, view: View) -> None:
        """Load the indexes that searches have used, before they get a view of other files."""
        for vector_name in list(self._held):
            self._prepared[vector_name] = self._load(view, vector_name, index_stamp(self._cache, vector_name))

    def _load(self, view: View, vector_name: str, stamp: int) -> _Held:
        index = load_index(self._cache, vector_name, self.catalog.went_through)
        same_files = index is not None and index.info.state.generation == view.state.generation
        if index is not None and same_files and len(index) <= view.state.next_slot:
            return _Held(index, stamp, view.state, from_cache=True)
        flat = build_index(view.vectors[vector_name], vector_name=vector_name, state=view.state, method="flat")
        return _Held(flat, stamp, view.state, from_cache=False)


@dataclass(frozen=True)
class _Held:
    """An index in memory, the state of the cache when it was taken, and of the catalog that it was last used for."""

    index: Index
    stamp: int
    state: State
    from_cache: bool

    def serves(self, view: View, stamp: int) -> bool:
        newer = view.state.next_slot - len(self.index)
        fits = self.index.info.state.generation == view.state.generation and newer >= 0
        # What is not in an index is looked at row by row; vectors in memory are quickly taken anew.
        return fits and stamp == self.stamp and (self.from_cache or newer <= _may_be_uncovered(len(self.index)))


def _may_be_uncovered(covered: int) -> int:
    return min(max(MIN_UNCOVERED, covered // 10), MAX_UNCOVERED)
