"""Which rows of a split cannot be used: those that are bad by themselves, and those with the id of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualtower.data.rows.blocks import MISSING_ID
from dualtower.data.rows.file import RowFile
from dualtower.data.rows.table import ID, RowTable
from dualtower.errors import RowError

__all__ = ["bad_rows", "shared_codes"]


def bad_rows(rows: RowFile, chosen: np.ndarray, before: Sequence[RowTable], *, where: str) -> dict[int, RowError]:
    """Row number -> what is wrong with its id, product id, text or attributes, in the order of the rows.

    Of two rows with one id the second is bad, unless the first is bad itself.

    Args:
        rows: All rows of a split of the source.
        chosen: Numbers of the rows to look at, ascending, int64 ``[N]``.
        before: Other rows, whose ids are taken.
        where: The source and its split, for messages.
    """
    found = rows.problems()
    if len(chosen) < len(rows):
        kept = set(np.intersect1d(chosen, np.fromiter(found, np.int64, len(found))).tolist())
        found = {row: reason for row, reason in found.items() if row in kept}
    for row in _with_taken_ids(rows, chosen, before, found):
        if found.get(row) != MISSING_ID:
            found[row] = "duplicate id"
    numbers = np.array(sorted(found), np.int64)
    ids = rows.values(ID, numbers)
    return {
        row: RowError(where, f"{row} (id {row_id})" if row_id else row, found[row])
        for row, row_id in zip(numbers.tolist(), ids, strict=True)
    }


def shared_codes(codes: np.ndarray) -> np.ndarray:
    """Those that stand there more than once."""
    found, counts = np.unique(codes, return_counts=True)
    shared: np.ndarray = found[counts > 1]
    return shared


def _with_taken_ids(
    rows: RowFile, chosen: np.ndarray, before: Sequence[RowTable], problems: dict[int, str]
) -> list[int]:
    """Rows whose id an earlier good row has. Ids are compared only where their codes are equal, which is seldom."""
    codes, known = rows.codes(ID)[chosen], [table.codes(ID) for table in before]
    shared = shared_codes(np.concatenate([*known, codes]))
    if not len(shared):
        return []
    taken: set[str] = set()
    for table, of in zip(before, known, strict=True):
        taken.update(table.ids[row] for row in np.flatnonzero(np.isin(of, shared)).tolist())
    numbers = chosen[np.isin(codes, shared)]
    found = []
    for row, row_id in zip(numbers.tolist(), rows.values(ID, numbers), strict=True):
        if row_id in taken:
            found.append(row)
        elif row not in problems:
            taken.add(row_id)
    return found
