"""Searches a catalogue: filtered, one hit per product, in an order that is always the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dualtower.errors import ConfigError, DualTowerError
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.filters import parse_filter
from dualtower.retrieval.nearest import Chosen, Index, best_of
from dualtower.retrieval.queries import Page, Place, Query, begin, write_cursor
from dualtower.retrieval.records import CatalogueInfo, StoredRow, kinds_of
from dualtower.retrieval.snapshot import Snapshot
from dualtower.retrieval.vectors import VectorReader, crcs_of
from dualtower.retrieval.view import View, ViewKeeper
from dualtower.types import Hit, product_code

__all__ = ["Searcher", "candidates", "exact_scores"]

log = logging.getLogger(__name__)
SLACK = 8
"""Candidates beyond the wanted ones, among which equal scores show."""
MOST_ORDERED = 50_000
"""Rows that are put in order for one page, however many are alike."""
TRIES = 5
"""Views to search, if what each of them shows is changed or dropped before it is read, before one is held still."""


@dataclass(frozen=True, eq=False)
class _Found:
    """Slots of the hits that follow a place, best first, their scores, and whether there are more."""

    place: Place
    slots: list[int]
    scores: list[float]
    more: bool


class Searcher:
    """Searches one catalogue; safe to use from many threads.

    Args:
        catalogue: What is searched.
        index: ``(view, kind) -> index`` to search with; none where it returns None.
        prepare: See `ViewKeeper`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        index: Callable[[View, str], Index | None] | None = None,
        prepare: Callable[[View], None] | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.views = ViewKeeper(catalogue, prepare)
        self._index = index or (lambda view, kind: None)

    def search_many(self, queries: Sequence[Query]) -> list[Page | DualTowerError]:
        """Return for each query what `search` returns or raises; those that are alike are looked up together."""
        at_least = 0
        for _ in range(TRIES):
            view = self.views.current(at_least)
            try:
                return self._answer(_Shown(self.catalogue, view), queries)
            except _Outdated:
                at_least = view.state.sequence + 1
        with self.views.held() as (view, snapshot):  # compactions are quicker than searches
            return self._answer(_Shown(self.catalogue, view, snapshot), queries)

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
            _page(query, of_query, self._whole(view, query.kind, of_query.slots, rows), self.catalogue.info)
            if isinstance(of_query, _Found)
            else of_query
            for query, of_query in zip(queries, found, strict=True)
        ]

    def _whole(self, view: View, kind: str, slots: list[int], rows: Mapping[int, StoredRow]) -> dict[int, StoredRow]:
        """The rows of some slots, without those whose vectors have changed on the disk: their scores mean nothing."""
        there = [slot for slot in slots if slot in rows]
        if not there:
            return {}
        place, whole = self.catalogue.info.kinds.index(kind), {slot: rows[slot] for slot in there}
        checksums = json.loads(f"[{','.join([row.checksums for row in whole.values()])}]")  # read in one go
        held = crcs_of(view.vectors[kind].gather(np.array(there)))
        for i, number in enumerate(view.numbers[there].tolist()):
            row = rows[there[i]]
            if checksums[i][place : place + 1] != held[i : i + 1] and row.number == number:
                log.warning("the %s vector of row %r has changed on the disk; see `dualtower verify`", kind, row.id)
                del whole[there[i]]
        return whole

    def search(self, query: Query) -> Page:
        """The next page of hits.

        All pages of one search show the catalogue as it was at the first: rows that come later stay out, rows that go
        are left out, and no other hit moves.

        Raises:
            FilterError: The filter cannot be read.
            CursorError: The cursor is broken, or of another search.
            ConfigError: The catalogue has no vectors of that kind, the vector does not fit, or more than `MOST_ORDERED`
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
            plain = not (query.cursor or query.where.strip() or query.without) and query.kind in view.vectors
            if plain and query.vector is not None and query.vector.shape == (self.catalogue.info.dim,):
                alike.setdefault((query.kind, query.limit), {})[i] = query.vector
        found: dict[int, np.ndarray] = {}
        for (kind, limit), vectors in alike.items():
            index, chosen = self._index(view, kind), view.everything[kind]
            if len(vectors) > 1 and index is not None and _needs_index(index, chosen, view.vectors[kind]):
                slots = index.search(np.stack(list(vectors.values())), chosen, index.oversampling * (limit + 1 + SLACK))
                found |= zip(vectors, slots, strict=True)
        return found

    def _find(self, shown: _Shown, query: Query, candidates: np.ndarray | None) -> _Found:
        """Where the hits of the next page lie; `candidates` are what the index has found already."""
        view = shown.view
        place = begin(query, self.catalogue.info, newest=view.state.sequence)
        part = parse_filter(query.where, kinds_of(self.catalogue.info)) if query.where.strip() else None
        chosen = view.chosen(query.kind, part, place.sequence)
        slots, scores = self._after(place, shown, query, chosen, query.limit + 1, candidates)
        page = slice(0, query.limit)
        return _Found(place, slots[page].tolist(), scores[page].tolist(), len(slots) > query.limit)

    def _after(
        self, place: Place, shown: _Shown, query: Query, chosen: Chosen, count: int, found: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best slots after a place, in their order, one per product where asked, and their scores."""
        view, hidden = shown.view, self._hidden(query.without)
        vector, index = place.vector, self._index(view, query.kind)
        wanted = place.hits + count + len(hidden)
        while True:
            slots, complete = candidates(view, query.kind, index, vector, chosen, wanted + SLACK, found)
            scores = exact_scores(view.vectors[query.kind].gather(slots), vector)
            slots, scores = _in_order(slots, scores, shown)
            worst = scores[-1] if len(scores) else 0.0  # rows as good as this one may not have been found
            if query.grouped:
                first = _first_of_each(view.products[slots])
                slots, scores = slots[first], scores[first]
            if place.hits:
                later = _is_later(slots, scores, place, shown)
                slots, scores = slots[later], scores[later]
            if hidden:
                others = ~np.isin(view.products[slots], list(hidden))
                slots, scores = slots[others], scores[others]
            if complete or (len(slots) >= count and scores[count - 1] > worst):
                return slots[:count], scores[:count]
            if wanted >= MOST_ORDERED:
                raise ConfigError(
                    f"more than {MOST_ORDERED:,} rows are as good as the last of this page, or of products before it; "
                    "narrow the search with a filter"
                )
            wanted, found = min(4 * wanted, MOST_ORDERED), None

    def _hidden(self, ids: Collection[str]) -> set[int]:
        """Products of the rows that must not be found."""
        return {product_code(row.product_id) for row in self.catalogue.get(list(ids))} if ids else set()


class _Outdated(Exception):
    """What a view shows has other attributes now, or has died and been dropped by a compaction."""


class _Shown:
    """The rows of a view.

    Args:
        catalogue: Whose rows.
        view: Which of them, in which versions.
        snapshot: That the view is of, where it is still open: then nothing can have been changed or dropped.
    """

    def __init__(self, catalogue: Catalogue, view: View, snapshot: Snapshot | None = None) -> None:
        self.catalogue, self.view, self.snapshot = catalogue, view, snapshot

    def versions(self, slots: Sequence[int]) -> dict[int, StoredRow]:
        """Slot -> version of a row.

        Raises:
            _Outdated: One was changed or dropped, so that there is a newer view.
        """
        numbers = self.view.numbers[list(slots)].tolist()
        rows = self.catalogue.at(numbers, self.snapshot)
        found = {slot: rows[number] for slot, number in zip(slots, numbers, strict=True) if number in rows}
        now = self.view.state.sequence
        same = len(rows) == len(set(numbers)) and all(
            row.updated is None or row.updated <= now for row in rows.values()
        )
        if not same and self.snapshot is None and self.catalogue.state != self.view.state:
            raise _Outdated
        return found

    def rows(self, slots: Sequence[int]) -> dict[int, StoredRow]:
        """Slot -> row; those that later pages find though they are dead in the view are shown as they are now."""
        found = self.versions(slots)
        dead = {slot: row.id for slot, row in found.items() if self.view.died[slot] <= self.view.state.sequence}
        if not dead:
            return found
        now = {row.id: row for row in self.catalogue.get(list(dead.values()))}
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


def _is_later(slots: np.ndarray, scores: np.ndarray, place: Place, shown: _Shown) -> np.ndarray:
    """Which of some ordered slots come after a place, bool ``[N]``."""
    later: np.ndarray = scores < place.score
    level = np.flatnonzero(scores == place.score)
    if len(level):
        names = shown.names(slots[level])
        later[level] = [names.get(slot, "") > place.id for slot in slots[level].tolist()]
    return later


def _first_of_each(products: np.ndarray) -> list[int]:
    """Places at which each product stands for the first time, ascending."""
    places: dict[int, int] = {}
    for place, product in enumerate(products.tolist()):
        places.setdefault(product, place)
    return list(places.values())


def _page(query: Query, found: _Found, rows: Mapping[int, StoredRow], info: CatalogueInfo) -> Page:
    """What was found, with its rows; those that have gone meanwhile are left out."""
    hits = [
        Hit(row.id, row.product_id, score, {"title": row.title, "attributes": row.attributes})
        for slot, score in zip(found.slots, found.scores, strict=True)
        if (row := rows.get(slot)) is not None
    ]
    if not found.more:
        return Page(hits, None)
    last, begin = rows.get(found.slots[-1]), found.place
    reached = begin.hits + len(found.slots)
    end = Place(begin.vector, begin.sequence, reached, found.scores[-1], last.id if last else "")
    return Page(hits, write_cursor(query, end, info))


def candidates(
    view: View,
    kind: str,
    index: Index | None,
    vector: np.ndarray,
    chosen: Chosen,
    count: int,
    found: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:
    """Slots among which the `count` best chosen rows are, and whether these are all chosen rows.

    Few rows are all looked at. Of many, an index finds good ones among those that it covers (`found`, where it has
    looked already), and the newer ones are looked at all.
    """
    slots, reader = chosen.slots, view.vectors[kind]
    if len(slots) <= count:
        return slots, True
    if index is None or not _needs_index(index, chosen, reader):
        return slots[best_of(reader.gather(slots), vector, count)], False
    if found is None:
        (found,) = index.search(vector[None], chosen, index.oversampling * count)
    newer = slots[np.searchsorted(slots, len(index)) :]
    if len(newer):
        found = np.concatenate([found, newer[best_of(reader.gather(newer), vector, count)]])
    return found, False


def _needs_index(index: Index, chosen: Chosen, reader: VectorReader) -> bool:
    """Whether a filter leaves too many rows to look at each, which is exact, and quicker than an index far away."""
    return index.exact or not chosen.filtered or len(chosen.slots) > reader.few


def exact_scores(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Scores that do not depend on what else is scored, float32 ``[N]``: pages must agree on them."""
    return np.einsum("nd,d->n", vectors.astype(np.float32), query)
