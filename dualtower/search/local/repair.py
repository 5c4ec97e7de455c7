"""Repairs a damaged catalog: what the rest of it still tells is made anew, and what is lost is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dualtower.errors import CatalogError
from dualtower.models.dual_tower import DualTower
from dualtower.search.ingest.embed import BLOCK, check_model, embed
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.schema import set_columns
from dualtower.search.local.store import LocalStore
from dualtower.search.local.verify import damages_of, structure_of
from dualtower.search.records import EmbeddedItem, StoredRow
from dualtower.types import Item

__all__ = ["LOST", "Repaired", "repair"]

LOST = "lost.jsonl"
"""File in the catalog that takes what is left of the rows that were removed."""


@dataclass(frozen=True)
class Repaired:
    """What was done.

    Attributes:
        embedded: Ids of the rows that got new vectors, made from their stored titles and images.
        without_thumbnail: Ids of the rows whose thumbnail was damaged and has been removed.
        lost: Ids of the rows that were removed, as nothing tells what they were.
    """

    embedded: list[str]
    without_thumbnail: list[str]
    lost: list[str]


def repair(store: LocalStore, load_model: Callable[[], DualTower]) -> Repaired:
    """Make a catalog whole again, as far as what is whole in it allows.

    Vectors are embedded anew from the stored title and image, which may be a smaller copy or one of several; so
    the rows that were touched are embedded once more when their source is indexed again. Rows whose own columns have
    changed are removed, since nobody knows what they were; `LOST` keeps what is left of them. Nobody else should write
    meanwhile.

    Args:
        store: The catalog.
        load_model: Loads its model; only called where vectors must be made.

    Raises:
        CatalogError: The database is damaged beyond repair.
    """
    catalog = store.catalog
    _mend_structure(catalog)
    broken: dict[int, set[str]] = {}
    with catalog.snapshot() as snapshot:
        for damage in damages_of(snapshot, catalog.info):
            broken.setdefault(damage.number, set()).add(damage.part)
    lost = _remove(catalog, [number for number, parts in broken.items() if "row" in parts])
    rows = list(catalog.at([number for number, parts in broken.items() if "row" not in parts]).values())
    embedded, without_thumbnail = list[str](), list[str]()
    model: DualTower | None = None
    for start in range(0, len(rows), BLOCK):
        some = [row for row in rows[start : start + BLOCK] if row.removed_at is None]
        without_thumbnail += [row.id for row in some if "thumbnail" in broken[row.number]]
        if any(broken[row.number] - {"thumbnail"} for row in some) and model is None:
            model = load_model()
            check_model(catalog.info, model)
        items = list(_healed(store, model, some, broken))
        catalog.upsert([item for item in items if item.vectors])
        embedded += [row.id for row, item in zip(some, items, strict=True) if broken[row.number] & set(item.vectors)]
        bare = [row.number for row, item in zip(some, items, strict=True) if not item.vectors]
        lost += _remove(catalog, bare)
    if broken:
        catalog.compact()
    if broken or store.is_stale(thorough=True):
        store.rebuild()
    return Repaired(embedded, without_thumbnail, lost)


def _mend_structure(catalog: Catalog) -> None:
    """Give every version its slots and the database its indexes."""
    with catalog.writing() as (connection, state):
        for vector_name in catalog.info.vector_names:
            catalog.vectors(vector_name, state.generation).lengthen(state.next_slot)
        connection.execute("REINDEX")
    with catalog.snapshot() as snapshot:
        if problems := structure_of(snapshot):
            raise CatalogError(
                f"{catalog.folder / 'rows.sqlite'} is damaged beyond repair: {problems[0]}. "
                "Restore it from a backup, or index into a new folder"
            )


def _healed(
    store: LocalStore, model: DualTower | None, rows: Sequence[StoredRow], broken: dict[int, set[str]]
) -> Iterator[EmbeddedItem]:
    """Rows with the vectors that are whole, and new ones instead of the others; without a digest, see `repair`."""
    catalog, view = store.catalog, store.searcher.views.newest()
    images = [None if "thumbnail" in broken[row.number] else catalog.image(row.id) for row in rows]
    items = [
        Item(row.id, row.product_id, (row.title,) if row.title else (), image, row.attributes)
        for row, image in zip(rows, images, strict=True)
    ]
    made = [{} for _ in rows] if model is None else [item.vectors for item in embed(model, items, catalog.info)]
    for row, image, new in zip(rows, images, made, strict=True):
        (slot,) = view.slots_of(np.array([row.number])).tolist()
        damaged = broken[row.number]
        whole = {k: view.vectors[k].gather(np.array([slot]))[0] for k in row.vector_names if k not in damaged}
        vectors = {**whole, **{vector_name: new[vector_name] for vector_name in damaged if vector_name in new}}
        yield EmbeddedItem(row.id, row.product_id, row.title, row.attributes, vectors, image)


def _remove(catalog: Catalog, numbers: Sequence[int]) -> list[str]:
    """Remove versions, and keep in a file what is left of them; returns their ids."""
    if not numbers:
        return []
    with catalog.writing() as (connection, state):
        columns = ("id", "product_id", "title", "attributes")
        left = f"SELECT {', '.join(f'CAST({name} AS BLOB)' for name in columns)} FROM rows WHERE number = ?"
        rows = [
            [part.decode(errors="replace") for part in connection.execute(left, (number,)).fetchone()]
            for number in numbers
        ]
        with (catalog.folder / LOST).open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
        which = [(number,) for number in numbers]
        empty = dict.fromkeys(("id", "product_id", "title", "digest"), "''")
        empty |= {"attributes": "'{}'", "checksums": "'[]'", "image": "NULL"}
        set_columns(connection, "number = ?", which, removed_at=state.sequence + 1, **empty)
        connection.executemany("DELETE FROM images WHERE number = ?", which)
        catalog.advance(connection, state)
    return [row[0] for row in rows]
