"""Rows of a catalog as rows of Milvus' collections, and back."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from dualtower.errors import DataError
from dualtower.search.milvus.filters import MISSING_NUMBER
from dualtower.search.milvus.schema import MAX_TEXT
from dualtower.search.milvus.search import SEQUENCE
from dualtower.search.records import CatalogInfo, EmbeddedItem, StoredRow

__all__ = ["MAX_PARTS", "attribute_values", "checked", "image_rows", "is_text", "part_id", "row_of", "stored_row"]

PART = 60_000
"""Characters of an image, in base64, in one row of the images' collection."""
MAX_PARTS = 40


def row_of(
    item: EmbeddedItem, vectors: Mapping[str, np.ndarray], info: CatalogInfo, columns: Mapping[str, str]
) -> dict[str, Any]:
    """An item as a row of the collection.

    Args:
        item: With its vectors.
        vectors: Vector name -> vector, zeros where the item has none.
        info: Info of the catalog.
        columns: Attribute -> field.

    Raises:
        DataError: A text is too long for Milvus, or holds half a character.
    """
    row: dict[str, Any] = {
        "id": item.id,
        "product_id": item.product_id,
        "title": item.title,
        "digest": item.digest,
        **attribute_values(item.attributes, info, columns),
    }
    for vector_name, vector in vectors.items():
        row[f"has_{vector_name}"] = vector_name in item.vectors
        row[vector_name] = vector.astype(np.float32).tolist()  # of float16 numbers, as on disk
    return checked(row)


def attribute_values(attributes: Mapping[str, Any], info: CatalogInfo, columns: Mapping[str, str]) -> dict[str, Any]:
    """Attributes as they are shown, and as fields that filters compare."""
    fields: dict[str, Any] = {"attributes": json.dumps(dict(attributes), ensure_ascii=False, default=str)}
    for attribute, column in columns.items():
        number = info.attributes[attribute] == "number"
        value = attributes.get(attribute)
        if value is None or value == "":
            fields[column] = MISSING_NUMBER if number else ""
        else:
            fields[column] = float(value) if number else str(value)
    return fields


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose texts Milvus can hold.

    Raises:
        DataError: One is too long, or holds half a character.
    """
    for field, value in row.items():
        if isinstance(value, str):
            most = 2000 if field == "id" else MAX_TEXT
            if not is_text(value):
                raise DataError(f"item {row['id']!r}: its {field} holds half a character, which Milvus cannot store")
            if len(value.encode()) > most:
                raise DataError(f"item {row['id'][:40]!r}: its {field} has more than {most:,} bytes, Milvus' limit")
    return row


def is_text(text: str) -> bool:
    """Whether UTF-8 holds it: JSON may say half a character, a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_rows(item: EmbeddedItem) -> list[dict[str, Any]]:
    """An image in base64, in parts that fit into a field of Milvus."""
    if item.image is None:
        return []
    encoded = base64.b64encode(item.image).decode()
    parts = [encoded[start : start + PART] for start in range(0, len(encoded), PART)] or [""]
    if len(parts) > MAX_PARTS:
        raise DataError(f"item {item.id!r}: its image has {len(item.image):,} bytes, too many for Milvus")
    return [
        {"id": part_id(i, item.id), "parts": len(parts), "content": part, "nothing": [0.0, 0.0]}
        for i, part in enumerate(parts)
    ]


def part_id(part: int, row_id: str) -> str:
    """Id of one part of a row's image."""
    return f"{part}:{row_id}"


def stored_row(row: Mapping[str, Any], info: CatalogInfo) -> StoredRow:
    """A row of the collection as every store gives it."""
    vector_names = tuple(vector_name for vector_name in info.vector_names if row[f"has_{vector_name}"])
    return StoredRow(
        row["id"], -1, SEQUENCE, row["product_id"], row["title"], json.loads(row["attributes"]), vector_names
    )
