"""Attributes of all rows as arrays, so that a filter is a few vectorized comparisons over the whole catalog."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualtower.search.filters import And, AttributeType, Comparison, Filter, Not, Or
from dualtower.search.local.vocabulary import Vocabulary

__all__ = ["Columns", "Counts", "NumberColumn", "TextColumn"]

_COMPARE = {
    "=": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


@dataclass(frozen=True)
class Counts:
    """What stands in an attribute.

    Attributes:
        type: ``text`` or ``number``.
        values: Values of a text, each with its number of rows, the most frequent first.
        low: Least value of a number.
        high: And the greatest.
        approximate: Whether some rows were not looked at, so that there may be more of each.
    """

    type: AttributeType
    values: tuple[tuple[str, int], ...] = ()
    low: float | None = None
    high: float | None = None
    approximate: bool = False


class TextColumn:
    """Text by code, int32 ``[N]``; -1 is missing. Codes number the distinct values in order of appearance."""

    def __init__(self) -> None:
        self.codes = np.empty(0, np.int32)
        self.vocabulary = Vocabulary.empty()

    def _encoded(self, values: Sequence[Any]) -> np.ndarray:
        """Codes of some values, which the vocabulary takes up."""
        texts = [None if value is None or value == "" else str(value) for value in values]
        distinct = list(dict.fromkeys(text for text in texts if text is not None))
        self.vocabulary = self.vocabulary.extended(distinct)
        code_of = dict(zip(distinct, self.vocabulary.codes_of(distinct).tolist(), strict=True))
        return np.array([-1 if text is None else code_of[text] for text in texts], np.int32)

    def __len__(self) -> int:
        return len(self.codes)

    def grow(self, count: int) -> None:
        """Append rows without a value, in arrays of this column alone."""
        self.codes = np.concatenate([self.codes, np.full(count, -1, np.int32)])

    def put(self, rows: slice | list[int], values: Sequence[Any]) -> None:
        """Give some rows other values; their array must be of this column alone."""
        self.codes[rows] = self._encoded(values)

    def take(self, rows: np.ndarray) -> None:
        """Keep some rows, in the order in which they are given."""
        self.codes = self.codes[rows]

    def satisfies(self, comparison: Comparison) -> np.ndarray:
        """bool ``[N]``."""
        wanted = self.vocabulary.codes_of([str(value) for value in comparison.values])
        wanted = wanted[wanted >= 0]
        if comparison.operator == "!=":
            return (self.codes >= 0) & ~np.isin(self.codes, wanted)
        return self.codes == wanted[0] if len(wanted) == 1 else np.isin(self.codes, wanted)

    def counts(self, rows: np.ndarray, *, most: int) -> Counts:
        """The most frequent values of some rows."""
        codes = self.codes[rows]
        numbers = np.bincount(codes[codes >= 0], minlength=len(self.vocabulary))
        least = np.partition(numbers, -most)[-most] if most < len(numbers) else 1  # one row, of whole numbers
        frequent = np.flatnonzero(numbers >= max(least, 1)).tolist()
        found = [(self.vocabulary.text(code), int(numbers[code])) for code in frequent]
        return Counts("text", tuple(sorted(found, key=lambda pair: (-pair[1], pair[0]))[:most]))

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it is, to be kept."""
        return {"rows": self.codes, **self.vocabulary.arrays()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take what `arrays` gave.

        Raises:
            KeyError: One is missing.
        """
        self.codes, self.vocabulary = arrays["rows"], Vocabulary.restored(arrays)


class NumberColumn:
    """Numbers, float64 ``[N]``; NaN is missing."""

    def __init__(self) -> None:
        self.values = np.empty(0, np.float64)

    def __len__(self) -> int:
        return len(self.values)

    def grow(self, count: int) -> None:
        """Append rows without a value, in an array of this column alone."""
        self.values = np.concatenate([self.values, np.full(count, np.nan)])

    def put(self, rows: slice | list[int], values: Sequence[Any]) -> None:
        """Give some rows other values; their array must be of this column alone."""
        self.values[rows] = [np.nan if value is None or value == "" else float(value) for value in values]

    def take(self, rows: np.ndarray) -> None:
        """Keep some rows, in the order in which they are given."""
        self.values = self.values[rows]

    def satisfies(self, comparison: Comparison) -> np.ndarray:
        """bool ``[N]``; missing numbers satisfy nothing."""
        if comparison.operator == "in":
            return np.isin(self.values, comparison.values)
        found: np.ndarray = _COMPARE[comparison.operator](self.values, comparison.values[0])
        return found & ~np.isnan(self.values) if comparison.operator == "!=" else found

    def counts(self, rows: np.ndarray) -> Counts:
        """The range of some rows."""
        held = self.values[rows]
        held = held[~np.isnan(held)]
        return Counts("number", low=float(held.min()), high=float(held.max())) if len(held) else Counts("number")

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it is, to be kept."""
        return {"rows": self.values}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take what `arrays` gave.

        Raises:
            KeyError: It is missing.
        """
        self.values = arrays["rows"]


class Columns:
    """All attributes of N rows.

    Args:
        types: Attribute -> its kind.
    """

    def __init__(self, types: Mapping[str, AttributeType]) -> None:
        self.types = dict(types)
        self.of: dict[str, TextColumn | NumberColumn] = {
            name: NumberColumn() if type == "number" else TextColumn() for name, type in types.items()
        }

    def __len__(self) -> int:
        return next((len(column) for column in self.of.values()), 0)

    def copy(self) -> Columns:
        """The same rows, to be extended without a change to these. (Extending makes new arrays.)"""
        other = Columns(self.types)
        other.of = {name: copy.copy(column) for name, column in self.of.items()}
        return other

    def take(self, rows: np.ndarray) -> Columns:
        """Some of these rows, in the order in which they are given."""
        other = self.copy()
        for column in other.of.values():
            column.take(rows)
        return other

    def extended(self, blocks: Iterable[Sequence[Mapping[str, Any]]], count: int) -> Columns:
        """These rows and `count` more, attribute -> value; each block is let go of before the next one is asked for."""
        other, start = self.copy(), len(self)
        for column in other.of.values():
            column.grow(count)
        for block in blocks:
            for name, column in other.of.items():
                column.put(slice(start, start + len(block)), [row.get(name) for row in block])
            start += len(block)
        return other

    def replace(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Give some rows, by number, other attributes; copies of these columns keep theirs."""
        if rows:
            for name, column in self.of.items():
                column.grow(0)
                column.put(list(rows), [row.get(name) for row in rows.values()])

    def counts(self, rows: np.ndarray, *, most: int) -> dict[str, Counts]:
        """Attribute -> what stands in it, of some rows; of texts the `most` frequent."""
        return {
            name: column.counts(rows, most=most) if isinstance(column, TextColumn) else column.counts(rows)
            for name, column in self.of.items()
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """All that they are, to be kept: ``<attribute>/<array>`` -> array."""
        return {f"{name}/{part}": array for name, column in self.of.items() for part, array in column.arrays().items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take what `arrays` gave.

        Raises:
            KeyError: An attribute is missing.
        """
        for name, column in self.of.items():
            of_column = {
                key.rpartition("/")[2]: array for key, array in arrays.items() if key.rpartition("/")[0] == name
            }
            column.restore(of_column)

    def satisfies(self, part: Filter) -> np.ndarray:
        """Which rows satisfy a filter, bool ``[N]``."""
        if isinstance(part, Comparison):
            return self.of[part.name].satisfies(part)
        if isinstance(part, Not):
            return ~self.satisfies(part.part)
        assert isinstance(part, And | Or)
        combine = np.logical_and if isinstance(part, And) else np.logical_or
        found = self.satisfies(part.parts[0])  # an array of its own, whatever the part
        for inner in part.parts[1:]:  # one after the other: all at once would take a byte per row for each of them
            combine(found, self.satisfies(inner), out=found)
        return found
