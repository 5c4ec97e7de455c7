"""What every store can do, wherever its vectors lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dualtower.errors import DualTowerError
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.columns import Counts
from dualtower.search.local.info_file import ABOUT
from dualtower.search.queries import Page, Query
from dualtower.search.records import CatalogInfo, EmbeddedItem, StoredRow

__all__ = ["Store", "create_store", "open_store", "store_exists"]


class Store(Protocol):
    """Rows with vectors and attributes, searchable and writable from many threads."""

    @property
    def info(self) -> CatalogInfo:
        """What it holds."""

    def __len__(self) -> int: ...

    def search(self, query: Query) -> Page:
        """The next page of hits: by score, then by id."""

    def search_many(self, queries: Sequence[Query]) -> list[Page | DualTowerError]:
        """Return for each query what `search` returns or raises."""

    def get(self, ids: Sequence[str]) -> list[StoredRow]:
        """Rows by id, in the order of `ids`; those that do not exist are left out."""

    def image(self, row_id: str) -> bytes | None:
        """Encoded image of a row, or None."""

    def vector(self, row_id: str, vector_name: str) -> np.ndarray | None:
        """A row's vector, float32 ``[D]``; None where the row, or this kind of it, does not exist."""

    def counts(self, where: str = "", *, most: int = 20) -> dict[str, Counts]:
        """What stands in the attributes of the rows that satisfy a filter."""

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""

    def upsert(self, items: Sequence[EmbeddedItem]) -> None:
        """Add rows, replacing those with the same ids."""

    def update_attributes(self, changes: Mapping[str, Mapping[str, Any]]) -> int:
        """Change attributes of rows without a change to their vectors; returns how many were not so already."""

    def delete(self, ids: Iterable[str]) -> int:
        """Remove rows; returns how many there were."""

    def close(self) -> None:
        """Let go of it."""


def open_store(where: str | Path) -> Store:
    """Open a catalog folder, or a Milvus collection by ``milvus://host:port/name`` or ``milvus:FILE.db/name``.

    Raises:
        CatalogError: There is none.
    """
    if _on_milvus(where):
        from dualtower.search.milvus.store import MilvusStore

        return MilvusStore.open(str(where))
    from dualtower.search.local.store import LocalStore

    return LocalStore(where)


def create_store(where: str | Path, info: CatalogInfo) -> Store:
    """Make an empty store where `open_store` will find it.

    Raises:
        CatalogError: Something is there already.
        MissingExtra: The address is Milvus', and its client is not installed.
    """
    if _on_milvus(where):
        from dualtower.search.milvus.store import MilvusStore

        return MilvusStore.create(str(where), info)
    Catalog.create(where, info).close()
    return open_store(where)


def store_exists(where: str | Path) -> bool:
    """Whether `open_store` would find one."""
    if _on_milvus(where):
        from dualtower.search.milvus.store import collection_exists

        return collection_exists(str(where))
    return (Path(where) / ABOUT).exists()


def _on_milvus(where: str | Path) -> bool:
    return str(where).startswith("milvus:")
