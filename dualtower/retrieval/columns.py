"""Attributes of all rows as arrays, so that a filter is a few vectorised comparisons over the whole catalogue."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualtower.retrieval.filters import And, Comparison, Filter, Kind, Not, Or

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
        kind: ``text`` or ``number``.
        values: Of a text: value and number of rows, the most frequent first.
        low: Of a number: the least.
        high: And the greatest.
    """

    kind: Kind
    values: tuple[tuple[str, int], ...] = ()
    low: float | None = None
    high: float | None = None


class TextColumn:
    """Text by code, int32 ``[N]``; -1 is missing. Codes number the distinct values in order of appearance."""

    def __init__(self) -> None:
        self.codes = np.empty(0, np.int32)
        self.code_of: dict[str, int] = {}

    def extend(self, values: Sequence[Any]) -> None:
        """Append rows."""
        self.codes = np.concatenate([self.codes, self._codes(values)])

    def replace(self, rows: Sequence[int], values: Sequence[Any]) -> None:
        """Give some rows other values, in arrays of this column alone."""
        self.codes = self.codes.copy()
        self.codes[rows] = self._codes(values)

    def take(self, rows: np.ndarray) -> None:
        """Keep some rows, in the order in which they are given."""
        self.codes = self.codes[rows]

    def satisfies(self, comparison: Comparison) -> np.ndarray:
        """bool ``[N]``."""
        wanted = [self.code_of[value] for value in comparison.values if value in self.code_of]
        if comparison.operator == "!=":
            return (self.codes >= 0) & ~np.isin(self.codes, wanted)
        return self.codes == wanted[0] if len(wanted) == 1 else np.isin(self.codes, wanted)

    def _codes(self, values: Sequence[Any]) -> np.ndarray:
        codes = [
            -1 if value is None or value == "" else self.code_of.setdefault(str(value), len(self.code_of))
            for value in values
        ]
        return np.array(codes, np.int32)

    def counts(self, rows: np.ndarray, *, most: int) -> Counts:
        """The most frequent values of some rows."""
        codes = self.codes[rows]
        numbers = np.bincount(codes[codes >= 0], minlength=len(self.code_of))
        found = [(value, int(numbers[code])) for value, code in self.code_of.items() if numbers[code]]
        return Counts("text", tuple(sorted(found, key=lambda pair: (-pair[1], pair[0]))[:most]))


class NumberColumn:
    """Numbers, float64 ``[N]``; NaN is missing."""

    def __init__(self) -> None:
        self.values = np.empty(0, np.float64)

    def extend(self, values: Sequence[Any]) -> None:
        """Append rows."""
        self.values = np.concatenate([self.values, _numbers(values)])

    def replace(self, rows: Sequence[int], values: Sequence[Any]) -> None:
        """Give some rows other values, in an array of this column alone."""
        self.values = self.values.copy()
        self.values[rows] = _numbers(values)

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


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None or value == "" else float(value) for value in values], np.float64)


class Columns:
    """All attributes of N rows.

    Args:
        kinds: Attribute -> its kind.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds = dict(kinds)
        self.of: dict[str, TextColumn | NumberColumn] = {
            name: NumberColumn() if kind == "number" else TextColumn() for name, kind in kinds.items()
        }

    def copy(self) -> Columns:
        """The same rows, to be extended without a change to these. (Extending makes new arrays; codes only grow.)"""
        other = Columns(self.kinds)
        other.of = {name: copy.copy(column) for name, column in self.of.items()}
        return other

    def take(self, rows: np.ndarray) -> Columns:
        """Some of these rows, in the order in which they are given."""
        other = self.copy()
        for column in other.of.values():
            column.take(rows)
        return other

    def extended(self, blocks: Sequence[Sequence[Mapping[str, Any]]]) -> Columns:
        """These rows and some more, attribute -> value."""
        other = self.copy()
        for block in blocks:
            other.extend(block)
        return other

    def extend(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, attribute -> value."""
        for name, column in self.of.items():
            column.extend([row.get(name) for row in rows])

    def replace(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Give some rows, by number, other attributes; copies of these columns keep theirs."""
        if rows:
            for name, column in self.of.items():
                column.replace(list(rows), [row.get(name) for row in rows.values()])

    def counts(self, rows: np.ndarray, *, most: int) -> dict[str, Counts]:
        """Attribute -> what stands in it, of some rows; of texts the `most` frequent."""
        return {
            name: column.counts(rows, most=most) if isinstance(column, TextColumn) else column.counts(rows)
            for name, column in self.of.items()
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Attribute -> its codes or numbers, to be kept."""
        return {
            name: column.codes if isinstance(column, TextColumn) else column.values for name, column in self.of.items()
        }

    def vocabularies(self) -> dict[str, list[str]]:
        """Attribute -> its distinct texts in the order of their codes."""
        return {name: list(column.code_of) for name, column in self.of.items() if isinstance(column, TextColumn)}

    def restore(self, arrays: Mapping[str, np.ndarray], vocabularies: Mapping[str, Sequence[str]]) -> None:
        """Take what `arrays` and `vocabularies` gave.

        Raises:
            KeyError: An attribute is missing.
        """
        for name, column in self.of.items():
            if isinstance(column, TextColumn):
                column.codes = arrays[name]
                column.code_of = {text: code for code, text in enumerate(vocabularies[name])}
            else:
                column.values = arrays[name]

    def satisfies(self, part: Filter) -> np.ndarray:
        """Which rows satisfy a filter, bool ``[N]``."""
        if isinstance(part, Comparison):
            return self.of[part.name].satisfies(part)
        if isinstance(part, Not):
            return ~self.satisfies(part.part)
        masks = [self.satisfies(inner) for inner in part.parts]
        combine = np.logical_and if isinstance(part, And) else np.logical_or
        assert isinstance(part, And | Or)
        found: np.ndarray = combine.reduce(masks)
        return found
