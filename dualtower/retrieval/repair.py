"""Repairs a damaged catalogue: what the rest of it still tells is made anew, and what is lost is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dualtower.errors import CatalogueError
from dualtower.model import DualTower
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.indexing import BLOCK, check_model, embed
from dualtower.retrieval.local import LocalStore
from dualtower.retrieval.records import Item, StoredRow
from dualtower.retrieval.schema import set_columns
from dualtower.retrieval.verify import damages_of, structure_of
from dualtower.types import Product

__all__ = ["LOST", "Repaired", "repair"]

LOST = "lost.jsonl"
"""File in the catalogue that takes what is left of the rows that were removed."""


@dataclass(frozen=True)
class Repaired:
    """What was done.

    Attributes:
        embedded: Ids of the rows that got new vectors, made from their stored titles and pictures.
        without_picture: Ids of the rows whose picture was damaged and has been removed.
        lost: Ids of the rows that were removed, as nothing tells what they were.
    """

    embedded: list[str]
    without_picture: list[str]
    lost: list[str]


def repair(store: LocalStore, load_model: Callable[[], DualTower]) -> Repaired:
    """Make a catalogue whole again, as far as what is whole in it allows.

    Vectors are embedded anew from the stored title and picture, which may be a smaller copy or one of several; so
    the rows that were touched are embedded once more when their source is indexed again. Rows whose own columns have
    changed are removed, since nobody knows what they were; `LOST` keeps what is left of them. Nobody else should write
    meanwhile.

    Args:
        store: The catalogue.
        load_model: Loads its model; only called where vectors must be made.

    Raises:
        CatalogueError: The database is damaged beyond repair.
    """
    catalogue = store.catalogue
    _mend_structure(catalogue)
    broken: dict[int, set[str]] = {}
    with catalogue.snapshot() as snapshot:
        for damage in damages_of(snapshot, catalogue.info):
            broken.setdefault(damage.number, set()).add(damage.part)
    lost = _remove(catalogue, [number for number, parts in broken.items() if "row" in parts])
    rows = list(catalogue.at([number for number, parts in broken.items() if "row" not in parts]).values())
    embedded, without_picture = list[str](), list[str]()
    model: DualTower | None = None
    for start in range(0, len(rows), BLOCK):
        some = [row for row in rows[start : start + BLOCK] if row.died is None]
        without_picture += [row.id for row in some if "picture" in broken[row.number]]
        if any(broken[row.number] - {"picture"} for row in some) and model is None:
            model = load_model()
            check_model(catalogue.info, model)
        items = list(_healed(store, model, some, broken))
        catalogue.upsert([item for item in items if item.vectors])
        embedded += [row.id for row, item in zip(some, items, strict=True) if broken[row.number] & set(item.vectors)]
        bare = [row.number for row, item in zip(some, items, strict=True) if not item.vectors]
        lost += _remove(catalogue, bare)
    if broken:
        catalogue.compact()
    if broken or store.is_stale(thorough=True):
        store.rebuild()
    return Repaired(embedded, without_picture, lost)


def _mend_structure(catalogue: Catalogue) -> None:
    """Give every version its slots and the database its indexes."""
    with catalogue.writing() as (connection, state):
        for kind in catalogue.info.kinds:
            catalogue.vectors(kind, state.generation).lengthen(state.next_slot)
        connection.execute("REINDEX")
    with catalogue.snapshot() as snapshot:
        if problems := structure_of(snapshot):
            raise CatalogueError(
                f"{catalogue.folder / 'rows.sqlite'} is damaged beyond repair: {problems[0]}. "
                "Restore it from a backup, or index into a new folder"
            )


def _healed(
    store: LocalStore, model: DualTower | None, rows: Sequence[StoredRow], broken: dict[int, set[str]]
) -> Iterator[Item]:
    """Rows with the vectors that are whole, and new ones instead of the others; without a digest, see `repair`."""
    catalogue, view = store.catalogue, store.searcher.views.newest()
    pictures = [None if "picture" in broken[row.number] else catalogue.picture(row.id) for row in rows]
    products = [
        Product(row.id, row.product_id, (row.title,) if row.title else (), picture, row.attributes)
        for row, picture in zip(rows, pictures, strict=True)
    ]
    made = [{} for _ in rows] if model is None else [item.vectors for item in embed(model, products, catalogue.info)]
    for row, picture, new in zip(rows, pictures, made, strict=True):
        (slot,) = view.slots_of(np.array([row.number])).tolist()
        damaged = broken[row.number]
        whole = {k: view.vectors[k].gather(np.array([slot]))[0] for k in row.kinds if k not in damaged}
        vectors = {**whole, **{kind: new[kind] for kind in damaged if kind in new}}
        yield Item(row.id, row.product_id, row.title, row.attributes, vectors, picture)


def _remove(catalogue: Catalogue, numbers: Sequence[int]) -> list[str]:
    """Remove versions, and keep in a file what is left of them; returns their ids."""
    if not numbers:
        return []
    with catalogue.writing() as (connection, state):
        columns = ("id", "product_id", "title", "attributes")
        left = f"SELECT {', '.join(f'CAST({name} AS BLOB)' for name in columns)} FROM rows WHERE number = ?"
        rows = [
            [part.decode(errors="replace") for part in connection.execute(left, (number,)).fetchone()]
            for number in numbers
        ]
        with (catalogue.folder / LOST).open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
        which = [(number,) for number in numbers]
        empty = dict.fromkeys(("id", "product_id", "title", "digest"), "''")
        empty |= {"attributes": "'{}'", "checksums": "'[]'", "picture": "NULL"}
        set_columns(connection, "number = ?", which, died=state.sequence + 1, **empty)
        connection.executemany("DELETE FROM pictures WHERE number = ?", which)
        catalogue.advance(connection, state)
    return [row[0] for row in rows]
