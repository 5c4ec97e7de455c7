"""The two collections of a catalogue in Milvus: rows with vectors, and pictures, which no search should carry about.

Milvus makes a collection, its indexes and its loaded state by calls of their own, and a process may die between any
two of them. So the collection of the rows, which carries what the catalogue is, is made after that of the pictures: its
presence says that the catalogue exists. What is missing then is added whenever it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogueError, DualTowerError
from dualtower.retrieval.records import FORMAT, CatalogueInfo

__all__ = ["MOST_TEXT", "PICTURES", "attribute_fields", "complete", "make_collections", "read_info"]

MOST_TEXT = 65_535
"""Bytes of a text field, the most that Milvus takes."""
PICTURES = "_pictures"
"""Added to a collection's name: that of the pictures."""
_ABOUT = "dualtower"
"""Property of a collection that says what it holds."""


def attribute_fields(info: CatalogueInfo) -> dict[str, str]:
    """Attribute -> field that filters compare: Milvus takes fewer names than shops do."""
    return {attribute: f"a{i}" for i, attribute in enumerate(sorted(info.attributes))}


def make_collections(client: Any, name: str, info: CatalogueInfo) -> None:
    """Make the collections of an empty catalogue; what a process that died has left of them is replaced."""
    from pymilvus import DataType

    about = {_ABOUT: json.dumps(to_dict(info))}
    if client.has_collection(f"{name}{PICTURES}"):  # of a process that died before it made the other one
        client.drop_collection(f"{name}{PICTURES}")
    pictures = client.create_schema(auto_id=False)
    pictures.add_field("id", DataType.VARCHAR, is_primary=True, max_length=2100)
    pictures.add_field("parts", DataType.INT64)
    pictures.add_field("content", DataType.VARCHAR, max_length=MOST_TEXT)
    pictures.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # no collection goes without a vector
    client.create_collection(f"{name}{PICTURES}", schema=pictures, properties=about, consistency_level="Bounded")
    rows = client.create_schema(auto_id=False)
    rows.add_field("id", DataType.VARCHAR, is_primary=True, max_length=2000)
    for field in ("product_id", "title", "attributes", "digest"):
        rows.add_field(field, DataType.VARCHAR, max_length=MOST_TEXT)
    for attribute, field in attribute_fields(info).items():
        if info.attributes[attribute] == "number":
            rows.add_field(field, DataType.DOUBLE)
        else:
            rows.add_field(field, DataType.VARCHAR, max_length=MOST_TEXT)
    for kind in info.kinds:
        rows.add_field(f"has_{kind}", DataType.BOOL)
        rows.add_field(kind, DataType.FLOAT_VECTOR, dim=info.dim)
    client.create_collection(name, schema=rows, properties=about, consistency_level="Bounded")
    complete(client, name, info)


def complete(client: Any, name: str, info: CatalogueInfo) -> None:
    """Add the indexes that are missing, and load the collections."""
    wanted: tuple[tuple[str, Sequence[str]], ...] = ((f"{name}{PICTURES}", ["nothing"]), (name, info.kinds))
    for collection, fields in wanted:
        if missing := set(fields) - set(client.list_indexes(collection)):
            indexes = client.prepare_index_params()
            for field in sorted(missing):
                indexes.add_index(field, index_type="AUTOINDEX", metric_type="IP")
            client.create_index(collection, indexes)
        client.load_collection(collection)


def read_info(client: Any, name: str, *, shown: str) -> CatalogueInfo:
    """What a collection holds.

    Raises:
        CatalogueError: There is none, or it is not ours, or of another format.
    """
    if not client.has_collection(name):
        raise CatalogueError(f"no collection {name!r} at {shown}; `dualtower index MODEL --out {shown}` makes one")
    try:
        info = from_dict(CatalogueInfo, json.loads(client.describe_collection(name)["properties"][_ABOUT]))
    except (ValueError, KeyError, TypeError, DualTowerError):
        raise CatalogueError(
            f"collection {name!r} at {shown} was not made by this version of dualtower; index into another one"
        ) from None
    if info.format != FORMAT:
        raise CatalogueError(f"{shown} is of format {info.format}, this version reads {FORMAT}; index into another one")
    return info
