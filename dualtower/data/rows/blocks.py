"""From the columns of a source to the values of rows, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from dualtower.data.cards import NORMALIZED_TEXT, PLACEHOLDER, Columns
from dualtower.data.reading import column_paths, column_values, has_column, outer_column
from dualtower.data.transforms.tokenizer import normalize_title
from dualtower.data.values import value_problem
from dualtower.errors import CardError, brief, did_you_mean

__all__ = ["MISSING_ID", "Block", "read_blocks", "require_columns"]

ROWS_AT_ONCE = 10_000
MISSING_ID = "missing id"


@dataclass(frozen=True)
class Block:
    """Values of some consecutive rows of one split of a source, good or bad.

    Attributes:
        ids: Row ids; an empty string where there is none.
        product_ids: Identities; the very list of the ids where each row is a product of its own.
        texts: Captions without the empty ones; an empty tuple where there is none.
        attributes: Attribute -> values.
        problems: What is wrong with each row by itself, or None. An id that another row has is for others to find.
        hashed: The values by whose hash the rows are divided, where these are neither ids nor identities.
    """

    ids: list[str]
    product_ids: list[str]
    texts: list[tuple[str, ...]]
    attributes: Mapping[str, list[Any]]
    problems: list[str | None]
    hashed: list[str] | None


def read_blocks(dataset: Any, columns: Columns, *, split: str, hashed: str | None = None) -> Iterator[Block]:
    """Read the columns that a card names, one block after the other; images stay on disk.

    Args:
        dataset: A `datasets.Dataset` with all of these columns (`require_columns`).
        columns: The card's mapping.
        split: Name of the source's split, with which rows without an id column are numbered.
        hashed: Further column to read as texts, for a rule by hash.

    Yields:
        Blocks of 10,000 rows; an empty one where there is no row at all.
    """
    named = [name for role, names in columns.named().items() if role != "image" for name in names]
    named += [] if hashed is None else [hashed]
    if named:  # a dataset without columns would have no rows
        dataset = dataset.select_columns(list(dict.fromkeys(outer_column(dataset, name) for name in named)))
    for start in range(0, max(1, len(dataset)), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(dataset)))
        yield _read(dataset.select(rows), columns, rows, split, hashed)


def _read(dataset: Any, columns: Columns, rows: range, split: str, hashed: str | None) -> Block:
    def values(name: str) -> list[Any]:
        return column_values(dataset, name)

    texts = _read_texts(columns.captions, values, len(rows))
    ids = [_as_text(v) for v in values(columns.id)] if columns.id else [f"{split}-{i}" for i in rows]
    if columns.product_id == NORMALIZED_TEXT:
        product_ids = [normalize_title(captions[0]) if captions else "" for captions in texts]
    elif columns.product_id:
        product_ids = [_as_text(v) for v in values(columns.product_id)]
    else:
        product_ids = ids
    attributes = {name: [_as_attribute(value) for value in values(name)] for name in columns.attributes}
    unusable = _unusable_values(attributes, columns.numeric)
    problems = _problems(ids, product_ids, texts if columns.captions else None, unusable)
    divided = None if hashed is None else [_as_text(value) for value in values(hashed)]
    return Block(ids, product_ids, texts, attributes, problems, divided)


def _problems(
    ids: list[str], product_ids: list[str], texts: list[tuple[str, ...]] | None, unusable: Mapping[int, str]
) -> list[str | None]:
    """What is wrong with each row; without `texts`, rows need none."""
    found = [unusable.get(i) for i in range(len(ids))]
    for i, (row_id, product_id) in enumerate(zip(ids, product_ids, strict=True)):
        if not row_id:
            found[i] = MISSING_ID
        elif texts is not None and not texts[i]:
            found[i] = "empty text"
        elif not product_id:
            found[i] = "missing product id"
    return found


def _unusable_values(attributes: Mapping[str, list[Any]], numeric: Collection[str]) -> dict[int, str]:
    """Row of the block -> the first of its attributes that no catalog takes, and why."""
    found: dict[int, str] = {}
    for name, values in attributes.items():
        number = name in numeric
        for i, value in enumerate(values):
            if (number or isinstance(value, (int, float))) and (problem := value_problem(value, number=number)):
                found.setdefault(i, f"column {name!r} {problem}")
    return found


def _read_texts(captions: tuple[str, ...], values: Callable[[str], list[Any]], count: int) -> list[tuple[str, ...]]:
    """Fill columns and templates; a column of lists gives one caption for each member."""
    texts: list[list[str]] = [[] for _ in range(count)]
    for caption in captions:
        names = PLACEHOLDER.findall(caption)
        if not names:
            for row, value in zip(texts, values(caption), strict=True):
                row += map(_as_text, value) if isinstance(value, list) else [_as_text(value)]
            continue
        for row, parts in zip(texts, zip(*map(values, names), strict=True), strict=True):
            filled = iter(map(_as_text, parts))
            text = PLACEHOLDER.sub(lambda _, filled=filled: next(filled), caption)  # type: ignore[misc]
            row.append(" ".join(text.split()) if any(map(_as_text, parts)) else "")
    return [(row[0],) if len(row) == 1 and row[0] else tuple(dict.fromkeys(filter(None, row))) for row in texts]


def _as_text(value: Any) -> str:
    if isinstance(value, str):  # nearly always
        return value.strip()
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    if value is None or value != value:  # a NaN is not equal to itself
        return ""
    if isinstance(value, bytes):  # some writers of Parquet do not mark texts as such
        return value.decode("utf-8", errors="replace").strip()
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps is one of floats
        return str(int(value))
    return str(value).strip()


def _as_attribute(value: Any) -> Any:
    """A text, a number, a truth value or None."""
    if isinstance(value, (bytes, list, date)):
        return _as_text(value)
    return float(value) if isinstance(value, Decimal) else value


def require_columns(wanted: Mapping[str, list[str]], dataset: Any, where: str) -> None:
    """Refuse a card that does not fit its source.

    Args:
        wanted: Role -> columns.
        dataset: A `datasets.Dataset`.
        where: The source and its split, for messages.

    Raises:
        CardError: The source lacks a column.
    """
    for role, names in wanted.items():
        for name in names:
            if has_column(dataset, name):
                continue
            known = sorted(column_paths(dataset.features))
            raise CardError(
                f"{where}: no column {brief(name, 40)!r}, which the card names as {role}; "
                f"the source has: {brief(', '.join(known), 80)}.{did_you_mean(name, known)}"
            )
