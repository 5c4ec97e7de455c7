"""The file in which the rows of one split of a source lie: Arrow, memory-mapped, read where somebody looks."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dualtower.data.rows.table import ID, PRODUCT_ID, TEXTS, gathered

__all__ = ["HASHED", "METADATA", "PROBLEM", "RowFile", "code_column"]

HASHED, PROBLEM = "hashed", "problem"
METADATA = b"dualtower"  # of the schema: JSON with the names of the attributes, and of the columns that hold JSON


class RowFile:
    """The rows of one split of a source, good or bad, on disk; it pickles as the name of its file.

    Attributes:
        attributes: Names of the attributes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = pa.memory_map(str(path)).read_buffer()
        table = pa.ipc.open_stream(pa.BufferReader(whole)).read_all()
        about = json.loads(table.schema.metadata[METADATA])
        self.attributes: tuple[str, ...] = tuple(about["attributes"])
        self._json = frozenset(about["json"])
        self._columns = {name: table.column(name) for name in table.column_names}
        self._starts = np.cumsum([0, *(len(chunk) for chunk in table.column(ID).chunks)])
        self._firsts: list[int] = self._starts[:-1].tolist()
        named = [table.column(name).chunks for name in (ID, PRODUCT_ID, TEXTS)]
        self._chunks = [(ids, of, t.offsets.to_numpy(), t.values) for ids, of, t in zip(*named, strict=True)]

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def value(self, column: str, row: int) -> Any:
        """One value; None where there is no such column."""
        data = self._columns.get(column)
        return None if data is None else self._decoded(column, [data[row].as_py()])[0]

    def row(self, row: int) -> tuple[str, str, tuple[str, ...]]:
        """Id, identity and captions of one row."""
        chunk = bisect_right(self._firsts, row) - 1
        place = row - self._firsts[chunk]
        ids, product_ids, offsets, texts = self._chunks[chunk]
        captions = tuple([texts[i].as_py() for i in range(offsets[place], offsets[place + 1])])
        return ids[place].as_py(), product_ids[place].as_py(), captions

    def values(self, column: str, rows: np.ndarray) -> list[Any]:
        """The values of some rows."""
        data = self._columns.get(column)
        if data is None or not len(rows):
            return [None] * len(rows)
        first = int(rows[0])
        if np.array_equal(rows, np.arange(first, first + len(rows))):
            return self._decoded(column, data.slice(first, len(rows)).to_pylist())
        read = gathered(rows, self._starts, lambda chunk, places: data.chunk(chunk).take(pa.array(places)).to_pylist())
        return self._decoded(column, read)

    def codes(self, column: str) -> np.ndarray:
        """`product_code` of the ids, of the product ids or of what the split goes by, int64 ``[N]``."""
        codes: np.ndarray = self._columns[code_column(column)].to_numpy()
        return codes

    def problems(self) -> dict[int, str]:
        """Row -> what is wrong with it, whatever other rows there are."""
        rows = np.flatnonzero(self._columns[PROBLEM].is_valid().to_numpy())
        return dict(zip(rows.tolist(), self.values(PROBLEM, rows), strict=True))

    def _decoded(self, column: str, values: list[Any]) -> list[Any]:
        if column == TEXTS:
            return list(map(tuple, values))
        if column in self._json:
            return [None if value is None else json.loads(value) for value in values]
        return values


def code_column(column: str) -> str:
    """The column of the codes of an id column."""
    return f"code/{column}"
