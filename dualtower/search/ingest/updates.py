"""New values of attributes, from a table of ids and what has changed to the rows of a catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dualtower.data.cards import CardSource, Columns, DataCard, Splits
from dualtower.data.reading import column_values
from dualtower.data.sources import open_source
from dualtower.errors import DataError, RowError, UnknownRow
from dualtower.search.records import CatalogInfo, check_changes, stored_attributes
from dualtower.search.store import Store

__all__ = ["Updated", "update_rows"]

BLOCK = 1000
"""Rows that are committed at a time."""


@dataclass
class Updated:
    """What was done.

    Attributes:
        changed: Rows that have other attributes now.
        unchanged: Rows that were so already, or for which the table holds no value.
        skipped: Rows that were left out, each with its reason.
    """

    changed: int = 0
    unchanged: int = 0
    skipped: list[RowError] = field(default_factory=list)


def update_rows(
    store: Store, source: str | Path, *, id_column: str = "id", on_error: Literal["raise", "skip"] = "raise"
) -> Updated:
    """Change attributes as a table says; nothing is embedded, and an empty cell changes nothing.

    Args:
        store: Whose rows are changed.
        source: File or folder, in any format that a data card reads: a column of ids, and columns named as attributes.
        id_column: The column of ids.
        on_error: ``raise`` stops before the first block of rows of which one is bad; ``skip`` leaves bad rows out.

    Raises:
        DataError: A column is no attribute of the catalog, or its vectors are made from it.
        RowError: A value does not fit its attribute, an id is missing or stands there twice, or there is no such row.
        SourceError: The source is missing or unreadable.
    """
    done, rows = Updated(), list(_read(store.info, source, id_column))
    taken: set[str] = set()
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        held = {row.id for row in store.get([row_id for _, row_id, _ in block])}
        changes: dict[str, Mapping[str, Any]] = {}
        for where, row_id, given in block:
            try:
                changes[row_id] = _checked(store.info, row_id, given, held, taken)
            except DataError as error:
                bad = RowError(str(source), where, str(error))
                if on_error == "raise":
                    raise RowError(bad.where, where, f"{error}; --on-error skip leaves such rows out") from error
                done.skipped.append(bad)
        changed = store.update_attributes({row_id: given for row_id, given in changes.items() if given})
        done.changed, done.unchanged = done.changed + changed, done.unchanged + len(changes) - changed
    return done


def _checked(
    info: CatalogInfo, row_id: str, given: Mapping[str, Any], held: set[str], taken: set[str]
) -> Mapping[str, Any]:
    """Values as the catalog stores them."""
    if not row_id:
        raise DataError("missing id")
    if row_id in taken:
        raise DataError(f"id {row_id!r} stands in the table before")
    if row_id not in held:
        raise UnknownRow([row_id])
    values = stored_attributes(info, row_id, given)
    check_changes(info, {row_id: values})
    taken.add(row_id)
    return values


def _read(info: CatalogInfo, source: str | Path, id_column: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, id and given values of each row."""
    texts = [name for name, vector_name in info.attributes.items() if vector_name == "text"]
    # What a card calls a text is read as the file writes it: an id "007" is not the number 7, nor is a color.
    columns = Columns(text=texts, id=id_column)
    opened = open_source(DataCard("update", columns, source=CardSource(), splits=Splits(by_hash=None)), source=source)
    number = 0
    for dataset in opened.splits.values():
        names = _attributes(info, dataset.column_names, id_column, where=opened.where)
        ids = column_values(dataset, id_column)
        values = [column_values(dataset, name) for name in names]
        for i, row_id in enumerate(ids):
            given = {name: column[i] for name, column in zip(names, values, strict=True)}
            yield number, "" if row_id is None else str(row_id).strip(), {n: v for n, v in given.items() if _is(v)}
            number += 1


def _attributes(info: CatalogInfo, columns: Sequence[str], id_column: str, *, where: str) -> list[str]:
    """The columns beside that of ids, each of which must be an attribute."""
    if id_column not in columns:
        raise DataError(f"{where}: no column {id_column!r} with the ids; it has: {', '.join(columns)}")
    names = [name for name in columns if name != id_column]
    if strangers := [name for name in names if name not in info.attributes]:
        raise DataError(
            f"{where}: column {strangers[0]!r} is no attribute of this catalog, which has: "
            f"{', '.join(info.attributes) or '(none)'}. Leave it out; titles and images change by `dualtower upsert`"
        )
    if not names:
        raise DataError(f"{where}: no column beside the ids; attributes are: {', '.join(info.attributes) or '(none)'}")
    return names


def _is(value: Any) -> bool:
    return value is not None and value != ""
