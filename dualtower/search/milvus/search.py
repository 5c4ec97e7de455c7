"""Searches of a Milvus collection: those that are alike in one call, and what is wrong with one is its own affair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualtower.errors import ConfigError, DualTowerError
from dualtower.search.local.searcher import exact_scores
from dualtower.search.queries import Cursor, Page, Query, encode_cursor
from dualtower.search.records import CatalogInfo, StoredRow
from dualtower.types import Hit

__all__ = ["MAX_AT_ONCE", "Asked", "Found", "answer"]

MAX_AT_ONCE = 16_384
"""Milvus answers no more rows to a request."""
MAX_BYTES = 32 * 2**20
"""Largest answer to several requests together."""
SEQUENCE = 0
"""Milvus keeps no older states: every page is of the newest one."""

Found = list[tuple[float, str, str]]
"""Score, id and product of rows, by score and then by id."""
Nearest = Callable[[str, list[np.ndarray], str, int], list[Found]]
"""``(kind, vectors, filter, number) -> the nearest rows of each vector``."""


@dataclass(frozen=True)
class Asked:
    """A request on its way.

    Attributes:
        query: As it was asked.
        position: Where its page begins.
        filters: In Milvus' language.
        hidden: Products that must not be found.
        wanted: So many rows should hold the page.
    """

    query: Query
    position: Cursor
    filters: str
    hidden: frozenset[str]
    wanted: int

    @property
    def number(self) -> int:
        """Rows to ask for; a few more, among which equal scores show."""
        return min(self.wanted + 8, MAX_AT_ONCE)


def answer(
    asked: Sequence[Asked],
    nearest: Nearest,
    rows: Callable[[list[str]], list[StoredRow]],
    info: CatalogInfo,
    *,
    row_bytes: int,
) -> list[Page | DualTowerError]:
    """Answer some requests; those with the same filter and number of rows go in one call.

    Args:
        asked: The requests.
        nearest: Asks Milvus.
        rows: Rows by their ids.
        info: What the collection holds.
        row_bytes: Bytes of one row of an answer.
    """
    pages: dict[int, tuple[Found, bool] | DualTowerError] = {}
    waiting = dict(enumerate(asked))
    while waiting:
        found: dict[int, Found] = {}
        for group in _alike(waiting, row_bytes):
            first = waiting[group[0]]
            vectors = [waiting[i].position.vector for i in group]
            try:
                found |= zip(group, nearest(first.query.vector_name, vectors, first.filters, first.number), strict=True)
            except DualTowerError as error:
                pages |= dict.fromkeys(group, error)
        for i, of_one in found.items():
            try:
                if (page := _page(waiting[i], of_one)) is not None:
                    pages[i] = page
            except DualTowerError as error:
                pages[i] = error
        waiting = {i: replace(one, wanted=4 * one.wanted) for i, one in waiting.items() if i not in pages}
    shown = {row_id for page in pages.values() if isinstance(page, tuple) for _, row_id, _ in page[0]}
    held = {row.id: row for row in rows(sorted(shown))}
    return [_shown(one, pages[i], held, info) for i, one in enumerate(asked)]


def _alike(waiting: dict[int, Asked], row_bytes: int) -> Iterator[list[int]]:
    """Numbers of requests that may go together, no more than what the answer may weigh."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    for i, one in waiting.items():
        groups.setdefault((one.query.vector_name, one.filters, one.number), []).append(i)
    for (_, _, number), group in groups.items():
        most = max(1, MAX_BYTES // (number * row_bytes))
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _page(asked: Asked, found: Found) -> tuple[Found, bool] | None:
    """Rows of the page and whether more follow; None where more rows must be asked for."""
    later, limit = _after(found, asked), asked.query.limit
    if len(found) < asked.number:
        return later[:limit], len(later) > limit
    # Rows as good as the last one that was found may not have been found.
    if len(later) > limit and later[limit][0] > found[-1][0]:
        return later[:limit], True
    if asked.number < MAX_AT_ONCE:
        return None
    if not later:
        raise ConfigError(
            f"Milvus answers at most {MAX_AT_ONCE:,} rows to a search, and the pages before have shown them; "
            "narrow the search with a filter"
        )
    return later[:limit], True  # the page after says that it is the end


def _after(found: Found, asked: Asked) -> Found:
    """What comes after a place, one row per product where asked."""
    seen, later, position = set(asked.hidden), [], asked.position
    for score, row_id, product in found:
        if product in seen:
            continue
        if asked.query.group_by_product:
            seen.add(product)
        if (-score, row_id) > (-position.score, position.id):
            later.append((score, row_id, product))
    return later


def _shown(
    asked: Asked, page: tuple[Found, bool] | DualTowerError, held: dict[str, StoredRow], info: CatalogInfo
) -> Page | DualTowerError:
    if isinstance(page, DualTowerError):
        return page
    found, more = page
    hits = [
        Hit(row.id, row.product_id, score, {"title": row.title, "attributes": row.attributes})
        for score, row_id, _ in found
        if (row := held.get(row_id)) is not None
    ]
    if not more:
        return Page(hits, None)
    reached = asked.position.hits + len(found)
    end = Cursor(asked.position.vector, SEQUENCE, reached, found[-1][0], found[-1][1])
    return Page(hits, encode_cursor(asked.query, end, info))


def in_order(ids: Sequence[str], product_ids: Sequence[str], vectors: np.ndarray, query: np.ndarray) -> Found:
    """Rows by score and then by id; scores are computed here, always alike."""
    scores = exact_scores(vectors.astype(np.float16), query)
    found = [(float(score), *of_row) for score, of_row in zip(scores, zip(ids, product_ids, strict=True), strict=True)]
    return sorted(found, key=lambda row: (-row[0], row[1]))
