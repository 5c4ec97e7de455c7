"""The same store on a Milvus cluster, for catalogs that outgrow one machine.

``milvus://host:19530/shop`` is a collection of a cluster, ``milvus:shop.db/shop`` one of Milvus Lite in a file, which
needs no server; see `dualtower.search.milvus.address` for databases, TLS and tokens. Filters, grouping and paging
mean what they mean on disk, with one difference: a page shows the catalog as it is when it is asked for, not as it
was when the search began. Pages still never overlap.

A process reads what it has written itself. What others write shows within some seconds, the bounded staleness of
Milvus; waiting for the newest of all writers at every search would cost it most of its speed.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dualtower.errors import CatalogError, DualTowerError, UnknownRow
from dualtower.search.filters import parse_filter
from dualtower.search.local.columns import Columns, Counts
from dualtower.search.milvus.address import Address, connect, parse_address, talking
from dualtower.search.milvus.filters import among, expression
from dualtower.search.milvus.rows import (
    MAX_PARTS,
    attribute_values,
    checked,
    image_rows,
    is_text,
    part_id,
    row_of,
    stored_row,
)
from dualtower.search.milvus.schema import (
    IMAGES,
    attribute_fields,
    complete,
    make_collections,
    read_info,
)
from dualtower.search.milvus.search import SEQUENCE, Asked, Found, answer, in_order
from dualtower.search.queries import Page, Query, decode_cursor
from dualtower.search.records import CatalogInfo, EmbeddedItem, StoredRow, attribute_types, check_changes, check_items

__all__ = ["MilvusStore", "collection_exists"]

COUNTED = 100_000
"""Rows that `counts` looks at: Milvus counts no values by itself."""
AT_ONCE = 8 * 2**20
"""Bytes of one write, about; a server takes 64 MiB."""
FRESH_SECONDS = 30.0
"""So long after a write of its own a process asks for what it has written."""
STRONG = "Strong"


class MilvusStore:
    """A collection of Milvus as a store; see `dualtower.search.store.Store`.

    Args:
        client: ``pymilvus.MilvusClient``.
        address: Address of the collection.
        info: What it holds.
    """

    def __init__(self, client: Any, address: Address, info: CatalogInfo) -> None:
        self._client, self._address, self._info = client, address, info
        self._name, self._images = address.collection, f"{address.collection}{IMAGES}"
        self._columns = attribute_fields(info)
        self._written = -FRESH_SECONDS

    @classmethod
    def open(cls, uri: str) -> MilvusStore:
        """Open a collection.

        Raises:
            CatalogError: There is none, or it is not ours, or the cluster does not answer.
        """
        address = parse_address(uri)
        client = connect(address)
        with talking(address):
            info = read_info(client, address.collection, shown=address.shown)
            complete(client, address.collection, info)
        return cls(client, address, info)

    @classmethod
    def create(cls, uri: str, info: CatalogInfo) -> MilvusStore:
        """Make an empty collection.

        Raises:
            CatalogError: It exists already, or the cluster does not answer.
        """
        address = parse_address(uri)
        client = connect(address)
        with talking(address):
            if client.has_collection(address.collection):
                raise CatalogError(
                    f"collection {address.collection!r} exists already at {address.shown}; "
                    "open it, or choose another name"
                )
            make_collections(client, address.collection, info)
        return cls(client, address, info)

    @property
    def info(self) -> CatalogInfo:
        """What the collection holds."""
        return self._info

    def __len__(self) -> int:
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def upsert(self, items: Sequence[EmbeddedItem]) -> None:
        """Add rows, replacing those with the same ids; each image is there before its row.

        Raises:
            DataError: An item does not fit the collection.
        """
        if not items:
            return
        blocks = check_items(self._info, items)
        rows = [
            row_of(item, {name: block[i] for name, block in blocks.items()}, self._info, self._columns)
            for i, item in enumerate(items)
        ]
        self._write(self._images, [row for item in items for row in image_rows(item)])
        self._drop_images([item.id for item in items if item.image is None])
        self._write(self._name, rows)

    def update_attributes(self, changes: Mapping[str, Mapping[str, Any]]) -> int:
        """Change attributes of rows, see `Catalog.update_attributes`; vectors are read and written back as they are.

        Milvus knows no transactions: a row that somebody else writes meanwhile may lose that write.
        """
        check_changes(self._info, changes)
        held = {row["id"]: row for row in self._by_ids(list(changes), ["*"], level=STRONG)}
        if unknown := [row_id for row_id in changes if row_id not in held]:
            raise UnknownRow(unknown)
        rows = []
        for row_id, given in changes.items():
            old = json.loads(held[row_id]["attributes"])
            if (new := old | dict(given)) != old:
                rows.append(checked({**held[row_id], **attribute_values(new, self._info, self._columns), "digest": ""}))
        self._write(self._name, rows)
        return len(rows)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove rows; returns how many there were."""
        found = [row["id"] for row in self._by_ids(list(dict.fromkeys(ids)), ["id"], level=STRONG)]
        for some in _batches(found):
            with self._talking():
                self._client.delete(self._name, filter=among("id", some))
            self._drop_images(some)
        self._written = time.monotonic()
        return len(found)

    def get(self, ids: Sequence[str]) -> list[StoredRow]:
        """Rows by id, in the order of `ids`; those that do not exist are left out."""
        fields = [
            "id",
            "product_id",
            "title",
            "attributes",
            *(f"has_{vector_name}" for vector_name in self._info.vector_names),
        ]
        found = {row["id"]: row for row in self._by_ids(ids, fields)}
        return [stored_row(found[row_id], self._info) for row_id in ids if row_id in found]

    def image(self, row_id: str) -> bytes | None:
        """Encoded image of a row, or None."""
        if not (first := self._image_parts([part_id(0, row_id)])):
            return None
        parts = first[0]["parts"]
        rest = self._image_parts([part_id(part, row_id) for part in range(1, parts)])
        content = {row["id"]: row["content"] for row in [*first, *rest]}
        try:
            return base64.b64decode("".join(content[part_id(part, row_id)] for part in range(parts)))
        except KeyError:
            raise CatalogError(f"the image of row {row_id!r} lacks a part; upsert the row again") from None

    def vector(self, row_id: str, vector_name: str) -> np.ndarray | None:
        """A row's vector, float32 ``[D]``; None where the row, or this kind of it, does not exist."""
        found = self._by_ids([row_id], [vector_name, f"has_{vector_name}"])
        return np.array(found[0][vector_name], np.float32) if found and found[0][f"has_{vector_name}"] else None

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""
        pages = self._pages("", ["id", "digest"], level=STRONG)
        return {row["id"]: row["digest"] for page in pages for row in page}

    def vectors(self, vector_name: str) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids and vectors of all rows that have such a vector, float32 ``[N, D]``, some thousand at a time."""
        for page in self._pages(self._filter("", vector_name), ["id", vector_name]):
            yield [row["id"] for row in page], np.array([row[vector_name] for row in page], np.float32)

    def counts(self, where: str = "", *, most: int = 20) -> dict[str, Counts]:
        """What stands in the attributes of the rows that satisfy a filter; of at most `COUNTED` rows, which it says."""
        blocks: list[list[dict[str, Any]]] = []
        counted, approximate = 0, False
        for page in self._pages(self._filter(where, None), ["attributes"]):
            approximate = counted + len(page) > COUNTED
            blocks.append([json.loads(row["attributes"]) for row in page[: COUNTED - counted]])
            counted += len(blocks[-1])
            if approximate:
                break
        columns = Columns(attribute_types(self._info)).extended(blocks, counted)
        found = columns.counts(np.arange(counted), most=most)
        return {name: replace(counts, approximate=approximate) for name, counts in found.items()}

    def search_many(self, queries: Sequence[Query]) -> list[Page | DualTowerError]:
        """Return for each query what `search` returns or raises; those with the same filter go to Milvus together."""
        answers: dict[int, Page | DualTowerError] = {}
        asked: dict[int, Asked] = {}
        for i, query in enumerate(queries):
            try:
                asked[i] = self._asked(query)
            except DualTowerError as error:
                answers[i] = error
        row_bytes = 4 * self._info.dim + 200
        found = answer(list(asked.values()), self._nearest, self.get, self._info, row_bytes=row_bytes)
        answers |= zip(asked, found, strict=True)
        return [answers[i] for i in range(len(queries))]

    def search(self, query: Query) -> Page:
        """The next page of hits: by score, then by id.

        Raises:
            FilterError: The filter cannot be read.
            CursorError: The cursor is broken, or of another search.
            ConfigError: The collection has no vectors of that kind, the vector does not fit, or paging ends here.
            CatalogError: Milvus does not answer.
        """
        (page,) = self.search_many([query])
        if isinstance(page, DualTowerError):
            raise page
        return page

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _asked(self, query: Query) -> Asked:
        position = decode_cursor(query, self._info, newest=SEQUENCE)
        filters = self._filter(query.where, query.vector_name)
        hidden = frozenset(row.product_id for row in self.get(sorted(query.without)))
        return Asked(query, position, filters, hidden, position.hits + query.limit + 1 + len(hidden))

    def _nearest(self, vector_name: str, vectors: list[np.ndarray], filters: str, number: int) -> list[Found]:
        with self._talking():
            answers = self._client.search(
                self._name,
                data=[vector.tolist() for vector in vectors],
                anns_field=vector_name,
                filter=filters,
                limit=number,
                output_fields=["id", "product_id", vector_name],
                search_params={"metric_type": "IP"},
                consistency_level=self._level,
            )
        found: list[Found] = []
        for vector, hits in zip(vectors, answers, strict=True):
            rows = [hit["entity"] for hit in hits]
            held = np.array([row[vector_name] for row in rows], np.float32).reshape(len(rows), self._info.dim)
            found.append(in_order([row["id"] for row in rows], [row["product_id"] for row in rows], held, vector))
        return found

    def _filter(self, where: str, vector_name: str | None) -> str:
        parts = [f"has_{vector_name} == true"] if vector_name else []
        if where.strip():
            parts.append(expression(parse_filter(where, attribute_types(self._info)), self._columns))
        return " and ".join(parts)

    @property
    def _level(self) -> str:
        """How new an answer must be."""
        return "Session" if time.monotonic() - self._written < FRESH_SECONDS else "Bounded"

    def _talking(self) -> Any:
        return talking(self._address)

    def _query(self, filters: str, fields: list[str], *, level: str = "", images: bool = False) -> list[Any]:
        with self._talking():
            return list(
                self._client.query(
                    self._images if images else self._name,
                    filter=filters,
                    output_fields=fields,
                    consistency_level=level or self._level,
                )
            )

    def _by_ids(self, ids: Sequence[str], fields: list[str], *, level: str = "") -> list[Any]:
        found: list[Any] = []
        for some in _batches([row_id for row_id in ids if is_text(row_id)]):
            found += self._query(among("id", some), ["id", *fields], level=level)
        return found

    def _pages(self, filters: str, fields: list[str], *, level: str = "") -> Iterator[list[Any]]:
        """All rows that satisfy a filter, some thousand at a time."""
        level = level or self._level
        with self._talking():
            pages = self._client.query_iterator(
                self._name, batch_size=5000, filter=filters, output_fields=fields, consistency_level=level
            )
            try:
                while page := pages.next():
                    yield page
            finally:
                pages.close()

    def _write(self, collection: str, rows: Sequence[dict[str, Any]]) -> None:
        """Upsert rows, not too many bytes at a time."""
        batch: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            batch.append(row)
            size += sum(len(value) if isinstance(value, str) else 4 * np.size(value) for value in row.values())
            if size >= AT_ONCE or row is rows[-1]:
                with self._talking():
                    self._client.upsert(collection, batch)
                batch, size = [], 0
        if rows:
            self._written = time.monotonic()

    def _image_parts(self, ids: Sequence[str]) -> list[Any]:
        texts = [part for part in ids if is_text(part)]
        return self._query(among("id", texts), ["id", "parts", "content"], images=True) if texts else []

    def _drop_images(self, ids: Sequence[str]) -> None:
        """Remove images; parts that a shorter image has left behind go as well."""
        for some in _batches(ids, 1000 // MAX_PARTS):
            parts = [part_id(part, row_id) for row_id in some for part in range(MAX_PARTS)]
            with self._talking():
                self._client.delete(self._images, filter=among("id", parts))


def collection_exists(uri: str) -> bool:
    """Whether there is such a collection."""
    address = parse_address(uri)
    client = connect(address)
    with talking(address):
        return bool(client.has_collection(address.collection))


def _batches(ids: Sequence[str], size: int = 1000) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
