"""The way of a search: retrieve rows, put the best of them in a new order, group them by product, cut pages.

A store retrieves, groups and cuts pages by itself, and does so where no stage has anything to say about a request.
Else the best rows are retrieved one by one, each stage in turn puts them in order, and only then they are grouped: of
each product the row that stands first now. Behind them the search goes on in the store's own order.

That happens once for a search. The cursor carries the order of what no page has shown yet, so that later pages cost no
stage anything, and neither overlap nor skip, whatever changes meanwhile.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dualtower.errors import CursorError, DualTowerError
from dualtower.search.filters import matches, parse_filter
from dualtower.search.queries import (
    BROKEN,
    Page,
    Query,
    decode_cursor,
    encode_cursor,
    fingerprint_of,
    read_signed,
    sign_cursor,
)
from dualtower.search.records import CatalogInfo, attribute_types
from dualtower.search.requests import SearchRequest
from dualtower.search.store import Store
from dualtower.types import Hit

__all__ = ["Order", "Reorder", "Stage", "search_in_stages"]

MARK = "ordered."
"""What the cursors of ordered searches begin with; those of stores never do, since base64 has no dot."""
NEWEST = 2**63 - 1

Reorder = Callable[[list[Hit]], list[Hit]]
"""The best rows of a search, best first -> the same rows in another order, with the scores that shall be shown."""


class Stage(Protocol):
    """Puts the best rows of a search in another order, before they are grouped by product and cut into pages."""

    def for_request(self, request: SearchRequest) -> Reorder | None:
        """What puts the rows of a request in order; None where the stage has nothing to say about such a request."""


@dataclass(frozen=True)
class Order:
    """Rows that stages have put in order, as far as no page has shown them.

    Attributes:
        rows: How many rows the stages had before them.
        waiting: Ids and scores of rows, best first; one per product where asked.
        behind: Cursor of the rows behind all of these; None where there are none.
    """

    rows: int
    waiting: list[tuple[str, float]]
    behind: str | None


def search_in_stages(
    store: Store, queries: Mapping[int, Query], reorders: Mapping[int, Sequence[Reorder]], *, depth: int
) -> dict[int, Page | DualTowerError]:
    """Answer some queries, in the order of stages where there is any, else as the store does.

    Args:
        store: Is searched.
        queries: By a number of each.
        reorders: For first pages: what puts the rows of a query in order, by the same numbers.
        depth: Rows that are put in order.

    Returns:
        For each query its page, or what is wrong with it.
    """
    answers: dict[int, Page | DualTowerError] = {}
    asked: dict[int, Query] = {}
    begun: dict[int, tuple[Order, dict[str, Hit]]] = {}
    for i, query in queries.items():
        if query.cursor is not None and query.cursor.startswith(MARK):
            try:
                begun[i] = _continued(store, query)
            except DualTowerError as error:
                answers[i] = error
        else:
            asked[i] = replace(query, limit=depth, group_by_product=False) if i in reorders else query
    for i, page in zip(asked, store.search_many(list(asked.values())) if asked else (), strict=True):
        if i not in reorders or isinstance(page, DualTowerError):
            answers[i] = page
            continue
        try:
            begun[i] = _ordered(queries[i], asked[i], page, reorders[i], store.info)
        except DualTowerError as error:
            answers[i] = error
    return answers | _pages(store, queries, begun)


def _ordered(
    query: Query, asked: Query, page: Page, reorders: Sequence[Reorder], info: CatalogInfo
) -> tuple[Order, dict[str, Hit]]:
    """The order of the best rows, which were asked for one by one, and the rows by their ids."""
    hits = page.hits
    for reorder in reorders:
        hits = reorder(hits)
    if query.group_by_product:
        first: dict[str, Hit] = {}
        for hit in hits:
            first.setdefault(hit.product_id, hit)
        hits = list(first.values())
    behind = None
    if page.cursor is not None:  # products of rows before the place do not come again: their best row is one of these
        position = decode_cursor(replace(asked, vector=None, cursor=page.cursor), info, newest=NEWEST)
        behind = encode_cursor(query, position, info)
    waiting = [(hit.id, float(hit.score)) for hit in hits]
    return Order(len(page.hits), waiting, behind), {hit.id: hit for hit in hits}


def _continued(store: Store, query: Query) -> tuple[Order, dict[str, Hit]]:
    """The order that a cursor carries, and the rows of its next page as they are now."""
    order = _read_order(query, store.info)
    part = parse_filter(query.where, attribute_types(store.info)) if query.where.strip() else None
    rows = store.get([row_id for row_id, _ in order.waiting[: query.limit]])
    return order, {
        row.id: Hit(row.id, row.product_id, 0.0, {"title": row.title, "attributes": row.attributes})
        for row in rows
        if part is None or matches(part, row.attributes)
    }


def _pages(
    store: Store, queries: Mapping[int, Query], begun: Mapping[int, tuple[Order, dict[str, Hit]]]
) -> dict[int, Page | DualTowerError]:
    """The next page of each order; where it ends within one, the store says what comes behind, or that nothing does."""
    asked: dict[int, Query] = {}
    for i, (order, _) in begun.items():
        lacking = queries[i].limit - len(order.waiting)
        if lacking >= 0 and order.behind is not None:
            asked[i] = replace(queries[i], vector=None, cursor=order.behind, limit=max(lacking, 1))
    found = dict(zip(asked, store.search_many(list(asked.values())) if asked else (), strict=True))
    return {i: _page(queries[i], order, rows, found.get(i), store.info) for i, (order, rows) in begun.items()}


def _page(
    query: Query, order: Order, rows: Mapping[str, Hit], behind: Page | DualTowerError | None, info: CatalogInfo
) -> Page | DualTowerError:
    """The next page of an order; rows that have gone meanwhile are left out."""
    if isinstance(behind, DualTowerError):
        return behind
    shown, waiting = order.waiting[: query.limit], order.waiting[query.limit :]
    hits = [replace(rows[row_id], score=score) for row_id, score in shown if row_id in rows]
    cursor = order.behind
    if behind is not None and len(shown) < query.limit:
        hits, cursor = hits + behind.hits, behind.cursor
    elif behind is not None and not behind.hits and behind.cursor is None:
        cursor = None
    if waiting or cursor is not None:
        return Page(hits, _write_order(query, Order(order.rows, waiting, cursor), info), order.rows)
    return Page(hits, None, order.rows)


def _write_order(query: Query, order: Order, info: CatalogInfo) -> str:
    order_json = json.dumps([order.rows, order.waiting, order.behind], ensure_ascii=False)
    packed = zlib.compress(order_json.encode(errors="surrogatepass"))
    return MARK + sign_cursor(fingerprint_of(query) + packed, info, purpose=MARK.encode())


def _read_order(query: Query, info: CatalogInfo) -> Order:
    """Raises: CursorError."""
    assert query.cursor is not None
    payload = read_signed(query.cursor.removeprefix(MARK), query, info, purpose=MARK.encode())
    try:
        rows, waiting, behind = json.loads(
            zlib.decompress(payload[len(fingerprint_of(query)) :]).decode(errors="surrogatepass")
        )
        return Order(rows, [(row_id, score) for row_id, score in waiting], behind)
    except (ValueError, TypeError, zlib.error) as error:  # such as of a version to come
        raise CursorError(BROKEN) from error
