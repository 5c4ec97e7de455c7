"""From the columns of a source to the values of rows, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from dualtower.data.cards import NORMALIZED_TEXT, PLACEHOLDER, Columns
from dualtower.data.extra_images import ExtraImages, read_image_lists
from dualtower.data.image_columns import ImageColumn
from dualtower.data.reading import column_paths, column_values, has_column
from dualtower.data.transforms.tokenizer import normalize_title
from dualtower.data.values import value_problem
from dualtower.errors import CardError, RowError, brief, did_you_mean

__all__ = ["Rows", "bad_rows", "hash_values", "read_rows"]


@dataclass(frozen=True)
class Rows:
    """Values of all rows of one split of a source, good or bad.

    Attributes:
        where: The source and its split, for messages.
        ids: Row ids; an empty string where there is none.
        product_ids: Identities.
        texts: Captions without the empty ones; an empty tuple where there is none.
        attributes: Attribute -> values.
        images: Undecoded first image of each row; all None for a card without an image column.
        extra_images: The images beyond the first.
    """

    where: str
    ids: list[str]
    product_ids: list[str]
    texts: list[tuple[str, ...]]
    attributes: Mapping[str, list[Any]]
    images: ImageColumn
    extra_images: ExtraImages


def read_rows(dataset: Any, columns: Columns, *, where: str, split: str, folder: Path | None) -> Rows:
    """Read the columns that a card names; images stay on disk.

    Args:
        dataset: A `datasets.Dataset`.
        columns: The card's mapping.
        where: The source and its split, for messages.
        split: Name of the source's split, with which rows without an id column are numbered.
        folder: Where relative image paths start.

    Raises:
        CardError: The card names a column that the source lacks.
    """
    _require(columns.named(), dataset, where)

    def values(name: str) -> list[Any]:
        return column_values(dataset, name)

    count = len(dataset)
    texts = _read_texts(columns.captions, values, count)
    ids = [_as_text(v) for v in values(columns.id)] if columns.id else [f"{split}-{i}" for i in range(count)]
    if columns.product_id == NORMALIZED_TEXT:
        product_ids = [normalize_title(captions[0]) if captions else "" for captions in texts]
    elif columns.product_id:
        product_ids = [_as_text(v) for v in values(columns.product_id)]
    else:
        product_ids = ids
    images, extra_images = read_image_lists(dataset, columns.image_columns, folder, count=count)
    attributes = {name: [_as_attribute(value) for value in values(name)] for name in columns.attributes}
    return Rows(where, ids, product_ids, texts, attributes, images, extra_images)


def bad_rows(
    rows: Rows, chosen: Iterable[int], taken: set[str], *, titled: bool = True, numeric: Collection[str] = ()
) -> dict[int, RowError]:
    """Row number -> what is wrong with its id, product id, text or attributes.

    Of two rows with one id the second is bad.

    Args:
        rows: All rows of a split of the source.
        chosen: Numbers of the rows to look at.
        taken: Ids that other rows have; those of the good rows are added.
        titled: Whether a row must have a text.
        numeric: Attributes that must be numbers.
    """
    unusable = _unusable_values(rows, numeric)
    problems: dict[int, RowError] = {}
    for i in chosen:
        row_id = rows.ids[i]
        if not row_id:
            reason = "missing id"
        elif row_id in taken:
            reason = "duplicate id"
        elif titled and not rows.texts[i]:
            reason = "empty text"
        elif not rows.product_ids[i]:
            reason = "missing product id"
        elif i in unusable:
            reason = unusable[i]
        else:
            taken.add(row_id)
            continue
        problems[i] = RowError(rows.where, f"{i} (id {row_id})" if row_id else i, reason)
    return problems


def _unusable_values(rows: Rows, numeric: Collection[str]) -> dict[int, str]:
    """Row number -> the first of its attributes that no catalog takes, and why."""
    found: dict[int, str] = {}
    for name, values in rows.attributes.items():
        number = name in numeric
        for i, value in enumerate(values):
            if (number or isinstance(value, int | float)) and (problem := value_problem(value, number=number)):
                found.setdefault(i, f"column {name!r} {problem}")
    return found


def hash_values(rows: Rows, dataset: Any, column: str) -> list[str]:
    """What a rule by hash looks at: the identity, the row id, or a column of the source.

    Raises:
        CardError: There is no such column.
    """
    if column == "product_id":
        return rows.product_ids
    if column == "id":
        return rows.ids
    _require({"splits.by_hash": [column]}, dataset, rows.where)
    return [_as_text(value) for value in column_values(dataset, column)]


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
    return [tuple(dict.fromkeys(text for text in row if text)) for row in texts]


def _as_text(value: Any) -> str:
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
    if isinstance(value, bytes | list | date):
        return _as_text(value)
    return float(value) if isinstance(value, Decimal) else value


def _require(wanted: Mapping[str, list[str]], dataset: Any, where: str) -> None:
    for role, names in wanted.items():
        for name in names:
            if has_column(dataset, name):
                continue
            known = sorted(column_paths(dataset.features))
            raise CardError(
                f"{where}: no column {brief(name, 40)!r}, which the card names as {role}; "
                f"the source has: {brief(', '.join(known), 80)}.{did_you_mean(name, known)}"
            )
