"""What may be written over HTTP: whole rows, or attributes alone; never half a row in place of a whole one."""

from __future__ import annotations

from collections.abc import Sequence

from dualtower.errors import DataError
from dualtower.search.records import stored_attributes
from dualtower.search.store import Store
from dualtower.serving.schemas import ItemIn

__all__ = ["check_whole"]


def check_whole(store: Store, items: Sequence[ItemIn]) -> None:
    """Refuse items that cannot be embedded, or would take away what the rows that they replace have.

    Raises:
        DataError: An item has neither a title nor an image, lacks one that its row has, names no product although its
            row belongs to one, or has an attribute that does not fit.
    """
    held = {row.id: row for row in store.get([item.id for item in items])}
    for item in items:
        stored_attributes(store.info, item.id, item.attributes)
        given = {"title": bool(item.title.strip()), "image": bool(item.image)}
        if not any(given.values()):
            raise DataError(f"item {item.id!r}: title and image are missing; {_advice(item)}")
        embedded = [name for name, kind in (("title", "text"), ("image", "image")) if kind in store.info.vector_names]
        if not any(given[name] for name in embedded):
            raise DataError(
                f"item {item.id!r}: {embedded[0]} is missing, and this catalog is searched by nothing else; "
                f"{_advice(item)}"
            )
        if (row := held.get(item.id)) is None:
            continue
        had = {"title": "text" in row.vector_names, "image": "image" in row.vector_names}
        if lost := [name for name in given if had[name] and not given[name]]:
            raise DataError(f"item {item.id!r}: {lost[0]} is missing, which the row has; {_advice(item)}")
        if item.product_id is None and row.product_id != item.id:
            raise DataError(
                f"item {item.id!r}: product_id is missing, the row's is {row.product_id!r}; {_advice(item)}"
            )


def _advice(item: ItemIn) -> str:
    return f"send the whole row, or change attributes alone with PATCH /items/{item.id}"
