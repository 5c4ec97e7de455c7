"""Searches a catalog: filtered, one hit per product, in an order that is always the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dualtower.errors import ConfigError, DualTowerError
from dualtower.search.ann.index import Index, RowSelection, best_of
from dualtower.search.filters import parse_filter
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.snapshot import Snapshot
from dualtower.search.local.vector_file import VectorReader, crcs_of
from dualtower.search.local.view import View, ViewKeeper
from dualtower.search.queries import Cursor, Page, Query, decode_cursor, encode_cursor
from dualtower.search.records import CatalogInfo, StoredRow, attribute_types
from dualtower.types import Hit, product_code

__all__ = ["Searcher", "candidates", "exact_scores"]

log = logging.getLogger(__name__)
SLACK = 8
"""Candidates beyond the wanted ones, among which equal scores show."""
MAX_ORDERED = 50_000
"""Rows that are put in order for one page, however many are alike."""
TRIES = 5
"""Views to search, if what each of them shows is changed or dropped before it is read, before one is held still."""


@dataclass(frozen=True, eq=False)
class _Found:
    """Slots of the hits that follow a place, best first, their scores, and whether there are more."""

    position: Cursor
    slots: list[int]
    scores: list[float]
    more: bool


class Searcher:
    """Searches one catalog; safe to use from many threads.

    Args:
        catalog: What is searched.
        index: ``(view, kind) -> index`` to search with; none where it returns None.
        prepare: See `ViewKeeper`.
    """

    def __init__(
        self,
        catalog: Catalog,
        index: Callable[[View, str], Index | None] | None = None,
        prepare: Callable[[View], None] | None = None,
    ) -> None:
        self.catalog = catalog
        self.views = ViewKeeper(catalog, prepare)
        self._index = index or (lambda view, vector_name: None)

    def search_many(self, queries: Sequence[Query]) -> list[Page | DualTowerError]:
        """Return for each query what `search` returns or raises; those that are alike are looked up together."""
        at_least = 0
        for _ in range(TRIES):
            view = self.views.current(at_least)
            try:
                return self._answer(_Shown(self.catalog, view), queries)
            except _Outdated:
                at_least = view.state.sequence + 1
        with self.views.held() as (view, snapshot):  # compactions are quicker than searches
            return self._answer(_Shown(self.catalog, view, snapshot), queries)

    def _answer(self, shown: _Shown, queries: Sequence[Query]) -> list[Page | DualTowerError]:
        """What `search_many` returns, of one view."""
        view = shown.view
        together = self._together(view, queries) if len(queries) > 1 else {}
        found: list[_Found | DualTowerError] = []
        for i, query in enumerate(queries):
            try:
                found.append(self._find(shown, query, together.get(i)))
            except DualTowerError as error:
                found.append(error)
        rows = shown.rows([slot for f in found if isinstance(f, _Found) for slot in f.slots])
        return [
            _page(query, of_query, self._whole(view, query.vector_name, of_query.slots, rows), self.catalog.info)
            if isinstance(of_query, _Found)
            else of_query
            for query, of_query in zip(queries, found, strict=True)
        ]

    def _whole(
        self, view: View, vector_name: str, slots: list[int], rows: Mapping[int, StoredRow]
    ) -> dict[int, StoredRow]:
        """The rows of some slots, without those whose vectors have changed on the disk: their scores mean nothing."""
        there = [slot for slot in slots if slot in rows]
        if not there:
            return {}
        position, whole = self.catalog.info.vector_names.index(vector_name), {slot: rows[slot] for slot in there}
        checksums = json.loads(f"[{','.join([row.checksums for row in whole.values()])}]")  # read in one go
        held = crcs_of(view.vectors[vector_name].gather(np.array(there)))
        for i, number in enumerate(view.numbers[there].tolist()):
            row = rows[there[i]]
            if checksums[i][position : position + 1] != held[i : i + 1] and row.number == number:
                log.warning(
                    "the %s vector of row %r has changed on the disk; see `dualtower verify`", vector_name, row.id
                )
                del whole[there[i]]
        return whole

    def search(self, query: Query) -> Page:
        """The next page of hits.

        All pages of one search show the catalog as it was at the first: rows that come later stay out, rows that go
        are left out, and no other hit moves.

        Raises:
            FilterError: The filter cannot be read.
            CursorError: The cursor is broken, or of another search.
            ConfigError: The catalog has no vectors of that kind, the vector does not fit, or more than `MAX_ORDERED`
                rows would have to be looked at.
        """
        (answer,) = self.search_many([query])
        if isinstance(answer, DualTowerError):
            raise answer
        return answer

    def _together(self, view: View, queries: Sequence[Query]) -> dict[int, np.ndarray]:
        """What an index finds for the first pages of unfiltered searches: number of the query -> slots."""
        alike: dict[tuple[str, int], dict[int, np.ndarray]] = {}
        for i, query in enumerate(queries):
            plain = not (query.cursor or query.where.strip() or query.without) and query.vector_name in view.vectors
            if plain and query.vector is not None and query.vector.shape == (self.catalog.info.dim,):
                alike.setdefault((query.vector_name, query.limit), {})[i] = query.vector
        found: dict[int, np.ndarray] = {}
        for (vector_name, limit), vectors in alike.items():
            index, selection = self._index(view, vector_name), view.everything[vector_name]
            if len(vectors) > 1 and index is not None and _needs_index(index, selection, view.vectors[vector_name]):
                slots = index.search(
                    np.stack(list(vectors.values())), selection, index.oversampling * (limit + 1 + SLACK)
                )
                found |= zip(vectors, slots, strict=True)
        return found

    def _find(self, shown: _Shown, query: Query, candidates: np.ndarray | None) -> _Found:
        """Where the hits of the next page lie; `candidates` are what the index has found already."""
        view = shown.view
        position = decode_cursor(query, self.catalog.info, newest=view.state.sequence)
        part = parse_filter(query.where, attribute_types(self.catalog.info)) if query.where.strip() else None
        selection = view.selection(query.vector_name, part, position.sequence)
        slots, scores = self._after(position, shown, query, selection, query.limit + 1, candidates)
        page = slice(0, query.limit)
        return _Found(position, slots[page].tolist(), scores[page].tolist(), len(slots) > query.limit)

    def _after(
        self,
        position: Cursor,
        shown: _Shown,
        query: Query,
        selection: RowSelection,
        count: int,
        found: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best slots after a place, in their order, one per product where asked, and their scores."""
        view, hidden = shown.view, self._hidden(query.without)
        vector, index = position.vector, self._index(view, query.vector_name)
        wanted = position.hits + count + len(hidden)
        while True:
            slots, complete = candidates(view, query.vector_name, index, vector, selection, wanted + SLACK, found)
            scores = exact_scores(view.vectors[query.vector_name].gather(slots), vector)
            slots, scores = _in_order(slots, scores, shown)
            worst = scores[-1] if len(scores) else 0.0  # rows as good as this one may not have been found
            if query.group_by_product:
                first = _first_of_each(view.product_codes[slots])
                slots, scores = slots[first], scores[first]
            if position.hits:
                later = _is_later(slots, scores, position, shown)
                slots, scores = slots[later], scores[later]
            if hidden:
                others = ~np.isin(view.product_codes[slots], list(hidden))
                slots, scores = slots[others], scores[others]
            if complete or (len(slots) >= count and scores[count - 1] > worst):
                return slots[:count], scores[:count]
            if wanted >= MAX_ORDERED:
                raise ConfigError(
                    f"more than {MAX_ORDERED:,} rows are as good as the last of this page, or of products before it; "
                    "narrow the search with a filter"
                )
            wanted, found = min(4 * wanted, MAX_ORDERED), None

    def _hidden(self, ids: Collection[str]) -> set[int]:
        """Products of the rows that must not be found."""
        return {product_code(row.product_id) for row in self.catalog.get(list(ids))} if ids else set()


class _Outdated(Exception):
    """What a view shows has other attributes now, or has died and been dropped by a compaction."""


class _Shown:
    """The rows of a view.

    Args:
        catalog: Whose rows.
        view: Which of them, in which versions.
        snapshot: That the view is of, where it is still open: then nothing can have been changed or dropped.
    """

    def __init__(self, catalog: Catalog, view: View, snapshot: Snapshot | None = None) -> None:
        self.catalog, self.view, self.snapshot = catalog, view, snapshot

    def versions(self, slots: Sequence[int]) -> dict[int, StoredRow]:
        """Slot -> version of a row.

        Raises:
            _Outdated: One was changed or dropped, so that there is a newer view.
        """
        numbers = self.view.numbers[list(slots)].tolist()
        rows = self.catalog.at(numbers, self.snapshot)
        found = {slot: rows[number] for slot, number in zip(slots, numbers, strict=True) if number in rows}
        now = self.view.state.sequence
        same = len(rows) == len(set(numbers)) and all(
            row.updated is None or row.updated <= now for row in rows.values()
        )
        if not same and self.snapshot is None and self.catalog.state != self.view.state:
            raise _Outdated
        return found

    def rows(self, slots: Sequence[int]) -> dict[int, StoredRow]:
        """Slot -> row; those that later pages find though they are dead in the view are shown as they are now."""
        found = self.versions(slots)
        dead = {slot: row.id for slot, row in found.items() if self.view.removed_at[slot] <= self.view.state.sequence}
        if not dead:
            return found
        now = {row.id: row for row in self.catalog.get(list(dead.values()))}
        found |= {slot: now[row_id] for slot, row_id in dead.items() if row_id in now}
        return {slot: row for slot, row in found.items() if slot not in dead or row.id in now}

    def names(self, slots: np.ndarray) -> dict[int, str]:
        """Slot -> id."""
        return {slot: row.id for slot, row in self.versions(slots.tolist()).items()}


def _in_order(slots: np.ndarray, scores: np.ndarray, shown: _Shown) -> tuple[np.ndarray, np.ndarray]:
    """Sort by score, and by id among equal scores (ids are looked up for those only)."""
    order = np.argsort(-scores, kind="stable")
    slots, scores = slots[order], scores[order]
    same = scores[1:] == scores[:-1]
    if same.any():
        places = np.flatnonzero(np.append(same, False) | np.append(False, same))
        names = shown.names(slots[places])
        keyed = [(-scores[i], names.get(int(slots[i]), ""), int(slots[i])) for i in places.tolist()]
        slots[places] = [slot for _, _, slot in sorted(keyed)]
    return slots, scores


def _is_later(slots: np.ndarray, scores: np.ndarray, position: Cursor, shown: _Shown) -> np.ndarray:
    """Which of some ordered slots come after a place, bool ``[N]``."""
    later: np.ndarray = scores < position.score
    level = np.flatnonzero(scores == position.score)
    if len(level):
        names = shown.names(slots[level])
        later[level] = [names.get(slot, "") > position.id for slot in slots[level].tolist()]
    return later


def _first_of_each(product_codes: np.ndarray) -> list[int]:
    """Places at which each product stands for the first time, ascending."""
    places: dict[int, int] = {}
    for position, product in enumerate(product_codes.tolist()):
        places.setdefault(product, position)
    return list(places.values())


def _page(query: Query, found: _Found, rows: Mapping[int, StoredRow], info: CatalogInfo) -> Page:
    """What was found, with its rows; those that have gone meanwhile are left out."""
    hits = [
        Hit(row.id, row.product_id, score, {"title": row.title, "attributes": row.attributes})
        for slot, score in zip(found.slots, found.scores, strict=True)
        if (row := rows.get(slot)) is not None
    ]
    if not found.more:
        return Page(hits, None)
    last, position = rows.get(found.slots[-1]), found.position
    reached = position.hits + len(found.slots)
    end = Cursor(position.vector, position.sequence, reached, found.scores[-1], last.id if last else "")
    return Page(hits, encode_cursor(query, end, info))


def candidates(
    view: View,
    vector_name: str,
    index: Index | None,
    vector: np.ndarray,
    selection: RowSelection,
    count: int,
    found: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:
    """Slots among which the `count` best chosen rows are, and whether these are all chosen rows.

    Few rows are all looked at. Of many, an index finds good ones among those that it covers (`found`, where it has
    looked already), and the newer ones are looked at all.
    """
    slots, reader = selection.slots, view.vectors[vector_name]
    if len(slots) <= count:
        return slots, True
    if index is None or not _needs_index(index, selection, reader):
        return slots[best_of(reader.gather(slots), vector, count)], False
    if found is None:
        (found,) = index.search(vector[None], selection, index.oversampling * count)
    newer = slots[np.searchsorted(slots, len(index)) :]
    if len(newer):
        found = np.concatenate([found, newer[best_of(reader.gather(newer), vector, count)]])
    return found, False


def _needs_index(index: Index, selection: RowSelection, reader: VectorReader) -> bool:
    """Whether a filter leaves too many rows to look at each, which is exact, and quicker than an index far away."""
    return index.exact or not selection.filtered or len(selection.slots) > reader.few


def exact_scores(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Scores that do not depend on what else is scored, float32 ``[N]``: pages must agree on them."""
    return np.einsum("nd,d->n", vectors.astype(np.float32), query)
