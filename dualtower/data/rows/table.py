"""Columns of many rows, kept where they are: a value becomes a Python object only while somebody looks at it."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol, overload

import numpy as np

from dualtower.types import product_code

__all__ = [
    "ID",
    "PRODUCT_ID",
    "TEXTS",
    "Column",
    "IdIndex",
    "InMemoryRows",
    "RowAttributes",
    "RowStore",
    "RowTable",
    "attribute",
    "codes_of",
]

ID, PRODUCT_ID, TEXTS = "id", "product_id", "texts"
AT_ONCE = 8_192  # rows that a walk over a column reads together


def attribute(name: str) -> str:
    """The column of an attribute."""
    return f"attribute/{name}"


def codes_of(texts: Iterable[str]) -> np.ndarray:
    """`product_code` of each text, int64 ``[N]``."""
    return np.fromiter(map(lru_cache(AT_ONCE)(product_code), texts), np.int64)


class RowStore(Protocol):
    """Where rows lie.

    Attributes:
        attributes: Names of the attributes that these rows have.
    """

    @property
    def attributes(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def value(self, column: str, row: int) -> Any: ...
    def row(self, row: int) -> tuple[str, str, tuple[str, ...]]: ...
    def values(self, column: str, rows: np.ndarray) -> list[Any]: ...
    def codes(self, column: str) -> np.ndarray: ...


class InMemoryRows:
    """Rows in memory.

    Args:
        ids: Row ids.
        product_ids: Identities.
        texts: Captions of each row.
        attributes: Attribute -> values.
    """

    def __init__(
        self,
        ids: Sequence[str],
        product_ids: Sequence[str],
        texts: Sequence[tuple[str, ...]],
        attributes: Mapping[str, Sequence[Any]],
    ) -> None:
        self.attributes = tuple(attributes)
        self.columns: dict[str, Sequence[Any]] = {ID: ids, PRODUCT_ID: product_ids, TEXTS: texts}
        self.columns |= {attribute(name): values for name, values in attributes.items()}
        self._codes: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.columns[ID])

    def value(self, column: str, row: int) -> Any:
        """One value; None where these rows have no such column."""
        return self.columns[column][row] if column in self.columns else None

    def row(self, row: int) -> tuple[str, str, tuple[str, ...]]:
        """Id, identity and captions of one row."""
        return self.columns[ID][row], self.columns[PRODUCT_ID][row], self.columns[TEXTS][row]

    def values(self, column: str, rows: np.ndarray) -> list[Any]:
        """The values of some rows."""
        return [self.value(column, row) for row in rows.tolist()]

    def codes(self, column: str) -> np.ndarray:
        """`product_code` of the ids or product ids."""
        if column not in self._codes:
            self._codes[column] = codes_of(self.columns[column])
        return self._codes[column]


class Column(Sequence[Any]):
    """One column of a `RowTable`, read where it is indexed and in blocks where it is walked through."""

    def __init__(self, table: RowTable, name: str) -> None:
        self.table, self.name = table, name

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return self.table.values(self.name, np.arange(chosen.start, chosen.stop, chosen.step))
        row, count = operator.index(index), len(self)
        if not -count <= row < count:
            raise IndexError(f"row {row} of {count:,}")
        return self.table.value(self.name, row % count)

    def at(self, rows: np.ndarray) -> list[Any]:
        """The values of some rows, in their order."""
        return self.table.values(self.name, rows)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]


class RowAttributes(Mapping[str, Any]):
    """Attributes of one row, each read when somebody asks for it: most trainings ask for none.

    Args:
        table: The row's table.
        row: Its number, not negative.
    """

    def __init__(self, table: RowTable, row: int) -> None:
        self.table, self.row = table, row

    def __getitem__(self, name: str) -> Any:
        return self.table.value(self.table.attributes[name].name, self.row)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.attributes)

    def __len__(self) -> int:
        return len(self.table.attributes)

    def __repr__(self) -> str:
        return repr(dict(self))


class RowTable:
    """Rows chosen from one or several stores, seen as columns.

    Args:
        stores: Where the rows lie.
        addresses: For each row its place in the stores laid end to end, int64 ``[N]``; None: all of them in order.

    Attributes:
        ids: Unique row ids.
        product_ids: Identities.
        texts: Captions of each row, a tuple.
        attributes: Attribute -> values; None where the row's store has no such attribute.
    """

    def __init__(self, stores: Sequence[RowStore], addresses: np.ndarray | None = None) -> None:
        self.stores, self.addresses = list(stores), addresses
        self.starts = np.cumsum([0, *map(len, self.stores)])
        self._firsts: list[int] = self.starts[:-1].tolist()

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.addresses is None else len(self.addresses)

    @property
    def ids(self) -> Column:
        return Column(self, ID)

    @property
    def product_ids(self) -> Column:
        return Column(self, PRODUCT_ID)

    @property
    def texts(self) -> Column:
        return Column(self, TEXTS)

    @cached_property
    def attributes(self) -> dict[str, Column]:
        names = dict.fromkeys(name for store in self.stores for name in store.attributes)
        return {name: Column(self, attribute(name)) for name in names}

    def value(self, column: str, row: int) -> Any:
        """One value; `row` is not negative."""
        store, place = self._place(row)
        return store.value(column, place)

    def row(self, row: int) -> tuple[str, str, tuple[str, ...]]:
        """Id, identity and captions of one row; `row` is not negative."""
        store, place = self._place(row)
        return store.row(place)

    def _place(self, row: int) -> tuple[RowStore, int]:
        address = row if self.addresses is None else int(self.addresses[row])
        if len(self.stores) == 1:
            return self.stores[0], address
        store = bisect_right(self._firsts, address) - 1
        return self.stores[store], address - self._firsts[store]

    def values(self, column: str, rows: np.ndarray) -> list[Any]:
        """The values of some rows, in their order."""
        addresses = rows if self.addresses is None else self.addresses[rows]
        if len(self.stores) == 1:
            return self.stores[0].values(column, addresses)
        return gathered(addresses, self.starts, lambda number, places: self.stores[number].values(column, places))

    def codes(self, column: str) -> np.ndarray:
        """`product_code` of the ids or product ids, int64 ``[N]``."""
        found = [store.codes(column) for store in self.stores]
        whole: np.ndarray = found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.int64), *found])
        return whole if self.addresses is None else whole[self.addresses]

    def select(self, rows: np.ndarray) -> RowTable:
        """Some rows, in this order.

        Raises:
            IndexError: There is no such row.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self):,}")
        return RowTable(self.stores, rows if self.addresses is None else self.addresses[rows])

    @staticmethod
    def concatenate(parts: Sequence[RowTable]) -> RowTable:
        """All rows of all parts."""
        stores = [store for part in parts for store in part.stores]
        if all(part.addresses is None for part in parts):
            return RowTable(stores)
        offsets = np.cumsum([0, *(part.starts[-1] for part in parts)])
        chosen = [np.arange(len(part)) if part.addresses is None else part.addresses for part in parts]
        return RowTable(stores, np.concatenate([rows + first for rows, first in zip(chosen, offsets, strict=False)]))


class IdIndex:
    """Row numbers by id, in 16 bytes a row.

    Args:
        table: Rows with unique ids.
    """

    def __init__(self, table: RowTable) -> None:
        codes = table.codes(ID)
        self.order = np.argsort(codes, kind="stable")
        self.codes = codes[self.order]
        self.ids = table.ids
        self.is_exact = bool(np.all(self.codes[1:] != self.codes[:-1]))

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """The row of each id, int64 ``[M]``.

        Raises:
            KeyError: No row has this id.
        """
        wanted = np.fromiter(map(product_code, ids), np.int64, len(ids))
        places = np.searchsorted(self.codes, wanted)
        for number, (place, code) in enumerate(zip(places.tolist(), wanted.tolist(), strict=True)):
            while place < len(self.codes) and self.codes[place] == code:
                if self.is_exact or self.ids[int(self.order[place])] == ids[number]:
                    break
                place += 1
            else:
                raise KeyError(ids[number])
            places[number] = place
        return self.order[places]


def gathered(addresses: np.ndarray, starts: np.ndarray, read: Callable[[int, np.ndarray], list[Any]]) -> list[Any]:
    """Values from several places laid end to end.

    Args:
        addresses: Addresses of the values, int64 ``[M]``.
        starts: Address at which each place begins, and where the last one ends.
        read: Reads from a place, given its number and addresses within it.
    """
    owners = np.searchsorted(starts, addresses, side="right") - 1
    found: list[Any] = [None] * len(addresses)
    for owner in np.unique(owners).tolist():
        wanted = np.flatnonzero(owners == owner)
        for where, value in zip(wanted.tolist(), read(owner, addresses[wanted] - starts[owner]), strict=True):
            found[where] = value
    return found
