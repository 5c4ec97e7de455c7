"""What a catalog holds: its description, rows on their way in and out, and the states that it goes through."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dualtower.data.values import value_problem
from dualtower.errors import DataError, did_you_mean
from dualtower.models.precision import TowerPrecision
from dualtower.search.filters import AttributeType

__all__ = [
    "CatalogInfo",
    "EmbeddedItem",
    "State",
    "StoredRow",
    "attribute_types",
    "check_changes",
    "check_items",
    "stored_attributes",
    "vector_names_in",
]

FORMAT = 3


@dataclass(frozen=True)
class CatalogInfo:
    """What a catalog is; fixed when it is made.

    Attributes:
        model: Folder or Hub id of the model whose vectors it holds.
        fingerprint: Fingerprint of that model; vectors of two models never mix.
        dim: Numbers per vector.
        vector_names: Vectors of each row, such as ``image``, ``text``, ``product``.
        attributes: Attribute -> ``text`` or ``number``.
        card: Name of the data card, for people.
        embedded_attributes: Attributes that fused vectors are made from; they change only with the whole row.
        precision: In what its rows were first embedded. Rows that came later may be more exact.
        format: Format of the folder.
        cursor_key: What cursors of its searches are signed with: 32 random hexadecimal digits.
    """

    model: str
    fingerprint: str
    dim: int
    vector_names: tuple[str, ...] = ("image", "text")
    attributes: Mapping[str, str] = field(default_factory=dict)
    card: str = ""
    embedded_attributes: tuple[str, ...] = ()
    precision: TowerPrecision | None = None
    format: int = FORMAT
    cursor_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class EmbeddedItem:
    """One row to be stored.

    Attributes:
        id: Unique id; a row of that id is replaced.
        product_id: Rows of one product are shown as one hit.
        title: For people.
        attributes: Attribute -> value.
        vectors: Kind -> ``[D]``; a kind that a row lacks (no image) is left out.
        image: Encoded bytes to show, or None.
        digest: Digest of what it was made from; rows that have not changed need not be embedded again.
    """

    id: str
    product_id: str
    title: str
    attributes: Mapping[str, Any]
    vectors: Mapping[str, np.ndarray]
    image: bytes | None = None
    digest: str = ""


class StoredRow(NamedTuple):
    """One version of a row as it is stored. (A tuple, since every hit of every search is one.)

    Attributes:
        id: Id of the row.
        number: Number of this version; no other ever has it.
        sequence: Number of the change with which it came.
        product_id: Rows of one product are shown as one hit.
        title: For people.
        attributes: Attribute -> value.
        vector_names: Vectors that it has.
        removed_at: Number of the change with which it was replaced or deleted; None while it lives.
        updated: Number of the change that gave it its present attributes; None where they are its first.
        checksums: Checksums of its vectors, as the database holds them: a JSON list, null for a kind that it has not.
    """

    id: str
    number: int
    sequence: int
    product_id: str
    title: str
    attributes: dict[str, Any]
    vector_names: tuple[str, ...]
    removed_at: int | None = None
    updated: int | None = None
    checksums: str = "[]"


@dataclass(frozen=True)
class State:
    """Where the catalog stands.

    Attributes:
        generation: Generation of the vector files.
        next_slot: Slots that are used in them.
        sequence: Number of the last change.
        next_number: What the next version of a row will get.
        token: A random number that the last change was given. A catalog that was restored from a backup and went on
            from there reaches the same numbers with other rows, but never the same token.
    """

    generation: int
    next_slot: int
    sequence: int
    next_number: int
    token: int


def check_items(info: CatalogInfo, items: Sequence[EmbeddedItem]) -> dict[str, np.ndarray]:
    """Refuse items that do not fit a catalog.

    Returns:
        Kind -> float16 ``[N, D]``, zero where an item lacks it.

    Raises:
        DataError: An item does not fit, or two have the same id.
    """
    if len({item.id for item in items}) < len(items):
        raise DataError("two items of one write have the same id; merge them")
    blocks = {vector_name: np.zeros((len(items), info.dim), np.float16) for vector_name in info.vector_names}
    for i, item in enumerate(items):
        if not item.id:
            raise DataError(f"item {i} has no id")
        _check_stored(info, item.id, item.attributes)
        for vector_name, vector in item.vectors.items():
            with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite
                stored = np.float16(vector)
            if vector_name not in blocks or stored.shape != (info.dim,) or not np.isfinite(stored).all():
                raise DataError(
                    f"item {item.id!r}: its {vector_name} vector {np.shape(vector)} does not fit; this catalog holds "
                    f"finite vectors of {info.dim} numbers for {', '.join(info.vector_names)}"
                )
            blocks[vector_name][i] = vector
    return blocks


def check_changes(info: CatalogInfo, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse changes of attributes, by row, that do not fit a catalog.

    Raises:
        DataError: There is no such attribute, a value does not fit it, or vectors are made from it.
    """
    for row_id, attributes in changes.items():
        _check_stored(info, row_id, attributes)
        if embedded := [name for name in attributes if name in info.embedded_attributes]:
            raise DataError(
                f"item {row_id!r}: the product vectors of this catalog are made from {embedded[0]!r}, among others; "
                "upsert the whole row, so that it is embedded anew"
            )


def stored_attributes(info: CatalogInfo, row_id: str, attributes: Mapping[str, Any]) -> dict[str, str | float | None]:
    """Attributes of a row as a catalog stores them: numbers, texts, and None where there is nothing.

    Raises:
        DataError: There is no such attribute, or a value is no number where one is wanted, or no finite one.
    """
    stored: dict[str, str | float | None] = {}
    for name, value in attributes.items():
        _check_attribute(info, row_id, name, value)
        if value is None or value == "":
            stored[name] = None
        else:
            stored[name] = float(value) if info.attributes[name] == "number" else str(value)
    return stored


def _check_attribute(info: CatalogInfo, row_id: str, name: str, value: Any) -> None:
    vector_name = info.attributes.get(name)
    if vector_name is None:
        known = ", ".join(info.attributes) or "(none)"
        hint = did_you_mean(name, info.attributes)
        raise DataError(f"item {row_id!r}: no attribute {name!r}; known: {known}.{hint}")
    if problem := value_problem(value, number=vector_name == "number"):
        raise DataError(f"item {row_id!r}: attribute {name!r} {problem}")


def _check_stored(info: CatalogInfo, row_id: str, attributes: Mapping[str, Any]) -> None:
    """Refuse attributes that are not as `stored_attributes` makes them."""
    for name, value in attributes.items():
        _check_attribute(info, row_id, name, value)
        if info.attributes[name] == "number" and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            raise DataError(f"item {row_id!r}: attribute {name!r} is {value!r}, which is no number")


def attribute_types(info: CatalogInfo) -> dict[str, AttributeType]:
    """Attribute -> kind, for filters."""
    return {name: "number" if vector_name == "number" else "text" for name, vector_name in info.attributes.items()}


def vector_names_in(checksums: str, info: CatalogInfo) -> tuple[str, ...]:
    """Kinds of vectors that a row has, by the JSON list of their checksums."""
    if "null" not in checksums:
        return info.vector_names if len(checksums) > 2 else ()
    return tuple(
        vector_name
        for vector_name, crc in zip(info.vector_names, json.loads(checksums), strict=True)
        if crc is not None
    )
