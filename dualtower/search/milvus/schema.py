"""The two collections of a catalog in Milvus: rows with vectors, and images, which no search should carry about.

Milvus makes a collection, its indexes and its loaded state by calls of their own, and a process may die between any
two of them. So the collection of the rows, which carries what the catalog is, is made after that of the images: its
presence says that the catalog exists. What is missing then is added whenever it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogError, DualTowerError
from dualtower.search.records import FORMAT, CatalogInfo

__all__ = ["IMAGES", "MAX_TEXT", "attribute_fields", "complete", "make_collections", "read_info"]

MAX_TEXT = 65_535
"""Bytes of a text field, the most that Milvus takes."""
IMAGES = "_images"
"""Added to a collection's name: that of the images."""
_ABOUT = "dualtower"
"""Property of a collection that says what it holds."""


def attribute_fields(info: CatalogInfo) -> dict[str, str]:
    """Attribute -> field that filters compare: Milvus takes fewer names than shops do."""
    return {attribute: f"a{i}" for i, attribute in enumerate(sorted(info.attributes))}


def make_collections(client: Any, name: str, info: CatalogInfo) -> None:
    """Make the collections of an empty catalog; what a process that died has left of them is replaced."""
    from pymilvus import DataType

    about = {_ABOUT: json.dumps(to_dict(info))}
    if client.has_collection(f"{name}{IMAGES}"):  # of a process that died before it made the other one
        client.drop_collection(f"{name}{IMAGES}")
    images = client.create_schema(auto_id=False)
    images.add_field("id", DataType.VARCHAR, is_primary=True, max_length=2100)
    images.add_field("parts", DataType.INT64)
    images.add_field("content", DataType.VARCHAR, max_length=MAX_TEXT)
    images.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # no collection goes without a vector
    client.create_collection(f"{name}{IMAGES}", schema=images, properties=about, consistency_level="Bounded")
    rows = client.create_schema(auto_id=False)
    rows.add_field("id", DataType.VARCHAR, is_primary=True, max_length=2000)
    for field in ("product_id", "title", "attributes", "digest"):
        rows.add_field(field, DataType.VARCHAR, max_length=MAX_TEXT)
    for attribute, field in attribute_fields(info).items():
        if info.attributes[attribute] == "number":
            rows.add_field(field, DataType.DOUBLE)
        else:
            rows.add_field(field, DataType.VARCHAR, max_length=MAX_TEXT)
    for vector_name in info.vector_names:
        rows.add_field(f"has_{vector_name}", DataType.BOOL)
        rows.add_field(vector_name, DataType.FLOAT_VECTOR, dim=info.dim)
    client.create_collection(name, schema=rows, properties=about, consistency_level="Bounded")
    complete(client, name, info)


def complete(client: Any, name: str, info: CatalogInfo) -> None:
    """Add the indexes that are missing, and load the collections."""
    wanted: tuple[tuple[str, Sequence[str]], ...] = ((f"{name}{IMAGES}", ["nothing"]), (name, info.vector_names))
    for collection, fields in wanted:
        if missing := set(fields) - set(client.list_indexes(collection)):
            indexes = client.prepare_index_params()
            for field in sorted(missing):
                indexes.add_index(field, index_type="AUTOINDEX", metric_type="IP")
            client.create_index(collection, indexes)
        client.load_collection(collection)


def read_info(client: Any, name: str, *, shown: str) -> CatalogInfo:
    """What a collection holds.

    Raises:
        CatalogError: There is none, or it is not ours, or of another format.
    """
    if not client.has_collection(name):
        raise CatalogError(f"no collection {name!r} at {shown}; `dualtower index MODEL --out {shown}` makes one")
    try:
        info = from_dict(CatalogInfo, json.loads(client.describe_collection(name)["properties"][_ABOUT]))
    except (ValueError, KeyError, TypeError, DualTowerError):
        raise CatalogError(
            f"collection {name!r} at {shown} was not made by this version of dualtower; index into another one"
        ) from None
    if info.format != FORMAT:
        raise CatalogError(f"{shown} is of format {info.format}, this version reads {FORMAT}; index into another one")
    return info
