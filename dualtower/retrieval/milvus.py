"""The same store on a Milvus cluster, for catalogues that outgrow one machine.

``milvus://host:19530/shop`` is a collection of a cluster, ``milvus:shop.db/shop`` one of Milvus Lite in a file, which
needs no server. Filters, grouping and paging mean what they mean on disk, with one difference: a page shows the
catalogue as it is when it is asked for, not as it was when the search began. Pages still never overlap.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogueError, ConfigError, DualTowerError, MissingExtra, UnknownRow
from dualtower.retrieval.columns import Columns, Counts
from dualtower.retrieval.filters import parse_filter
from dualtower.retrieval.milvus_filters import MISSING_NUMBER, expression
from dualtower.retrieval.queries import Page, Place, Query, begin, write_cursor
from dualtower.retrieval.records import CatalogueInfo, Item, StoredRow, check_changes, check_items, kinds_of
from dualtower.retrieval.search import exact_scores
from dualtower.retrieval.shown import shown_picture
from dualtower.types import Hit

__all__ = ["MilvusStore", "collection_exists"]

MOST_AT_ONCE = 16_384
"""Milvus answers no more rows at a time."""
MOST_TEXT = 65_535
COUNTED = 10_000
"""Rows that `counts` looks at: Milvus counts no values by itself."""
ABOUT = "_about"
"""Added to a collection's name: a collection that says what it holds."""
_SEQUENCE = 0


class MilvusStore:
    """A collection of Milvus as a store; see `dualtower.retrieval.store.Store`.

    Args:
        client: ``pymilvus.MilvusClient``.
        name: Of the collection.
        info: What it holds.
    """

    def __init__(self, client: Any, name: str, info: CatalogueInfo) -> None:
        self._client, self._name, self._info = client, name, info
        self._columns = {attribute: f"a{i}" for i, attribute in enumerate(sorted(info.attributes))}

    @classmethod
    def open(cls, uri: str) -> MilvusStore:
        """Open a collection.

        Raises:
            CatalogueError: There is none, or it is not ours, or the cluster does not answer.
        """
        client, name = _connect(uri)
        from pymilvus import MilvusException

        if not client.has_collection(name):
            raise CatalogueError(f"no collection {name!r} at {uri}; `dualtower index MODEL --out {uri}` makes one")
        try:
            (about,) = client.query(f"{name}{ABOUT}", ids=["info"], output_fields=["content"])
            info = from_dict(CatalogueInfo, json.loads(about["content"]))
        except (ValueError, KeyError, ConfigError, MilvusException) as error:
            raise CatalogueError(f"collection {name!r} at {uri} was not made by dualtower: {error}") from error
        return cls(client, name, info)

    @classmethod
    def create(cls, uri: str, info: CatalogueInfo) -> MilvusStore:
        """Make an empty collection.

        Raises:
            CatalogueError: It exists already, or the cluster does not answer.
        """
        from pymilvus import DataType

        client, name = _connect(uri)
        if client.has_collection(name):
            raise CatalogueError(f"collection {name!r} exists already at {uri}; open it, or choose another name")
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=2000)
        for field in ("product_id", "title", "attributes", "picture", "digest"):
            schema.add_field(field, DataType.VARCHAR, max_length=MOST_TEXT)
        for i, attribute in enumerate(sorted(info.attributes)):
            if info.attributes[attribute] == "number":
                schema.add_field(f"a{i}", DataType.DOUBLE)
            else:
                schema.add_field(f"a{i}", DataType.VARCHAR, max_length=MOST_TEXT)
        index = client.prepare_index_params()
        for kind in info.kinds:
            schema.add_field(f"has_{kind}", DataType.BOOL)
            schema.add_field(kind, DataType.FLOAT_VECTOR, dim=info.dim)
            index.add_index(kind, index_type="AUTOINDEX", metric_type="IP")
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        about = client.create_schema(auto_id=False)
        about.add_field("id", DataType.VARCHAR, is_primary=True, max_length=100)
        about.add_field("content", DataType.VARCHAR, max_length=MOST_TEXT)
        about.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # no collection goes without a vector
        index = client.prepare_index_params()
        index.add_index("nothing", index_type="AUTOINDEX", metric_type="IP")
        client.create_collection(f"{name}{ABOUT}", schema=about, index_params=index, consistency_level="Strong")
        client.insert(f"{name}{ABOUT}", [{"id": "info", "content": json.dumps(to_dict(info)), "nothing": [0.0, 0.0]}])
        return cls(client, name, info)

    @property
    def info(self) -> CatalogueInfo:
        """What the collection holds."""
        return self._info

    def __len__(self) -> int:
        counted = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return int(counted[0]["count(*)"])

    def upsert(self, items: Sequence[Item]) -> None:
        """Add rows, replacing those with the same ids.

        Raises:
            DataError: An item does not fit the collection.
        """
        if items:
            blocks = check_items(self._info, items)
            rows = [self._row(item, {kind: block[i] for kind, block in blocks.items()}) for i, item in enumerate(items)]
            self._client.upsert(self._name, rows)

    def update_attributes(self, changes: Mapping[str, Mapping[str, Any]]) -> int:
        """Change attributes of rows, see `Catalogue.update_attributes`; vectors are read and written back as they are.

        Milvus knows no transactions: a row that somebody else writes meanwhile may lose that write.
        """
        check_changes(self._info, changes)
        held = {row["id"]: row for row in self._query(list(changes), ["*"])}
        if unknown := [row_id for row_id in changes if row_id not in held]:
            raise UnknownRow(unknown)
        rows = []
        for row_id, given in changes.items():
            old = json.loads(held[row_id]["attributes"])
            if (new := old | dict(given)) != old:
                rows.append({**held[row_id], **self._fields(new), "digest": ""})
        if rows:
            self._client.upsert(self._name, rows)
        return len(rows)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove rows; returns how many there were."""
        found = [row["id"] for row in self._query(list(dict.fromkeys(ids)), ["id"])]
        if found:
            self._client.delete(self._name, ids=found)
        return len(found)

    def get(self, ids: Sequence[str]) -> list[StoredRow]:
        """Rows by id, in the order of `ids`; those that do not exist are left out."""
        fields = ["id", "product_id", "title", "attributes", *(f"has_{kind}" for kind in self._info.kinds)]
        found = {row["id"]: row for row in self._query(list(ids), fields)}
        return [self._stored(found[row_id]) for row_id in ids if row_id in found]

    def picture(self, row_id: str) -> bytes | None:
        """Encoded picture of a row, or None."""
        found = self._query([row_id], ["picture"])
        return base64.b64decode(found[0]["picture"]) if found and found[0]["picture"] else None

    def vector(self, row_id: str, kind: str) -> np.ndarray | None:
        """A row's vector, float32 ``[D]``; None where the row, or this kind of it, does not exist."""
        found = self._query([row_id], [kind, f"has_{kind}"])
        return np.array(found[0][kind], np.float32) if found and found[0][f"has_{kind}"] else None

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""
        held: dict[str, str] = {}
        pages = self._client.query_iterator(self._name, batch_size=1000, filter="", output_fields=["id", "digest"])
        while batch := pages.next():
            held |= {row["id"]: row["digest"] for row in batch}
        pages.close()
        return held

    def counts(self, where: str = "", *, most: int = 20) -> dict[str, Counts]:
        """What stands in the attributes of the rows that satisfy a filter; of at most `COUNTED` rows."""
        filters = self._filter(where, None)
        rows = self._client.query(self._name, filter=filters, output_fields=["attributes"], limit=COUNTED)
        columns = Columns(kinds_of(self._info)).extended([[json.loads(row["attributes"]) for row in rows]], len(rows))
        return columns.counts(np.arange(len(rows)), most=most)

    def search_many(self, queries: Sequence[Query]) -> list[Page | DualTowerError]:
        """For each query what `search` returns or raises."""
        answers: list[Page | DualTowerError] = []
        for query in queries:
            try:
                answers.append(self.search(query))
            except DualTowerError as error:
                answers.append(error)
        return answers

    def search(self, query: Query) -> Page:
        """The next page of hits: by score, then by id.

        Raises:
            FilterError: The filter cannot be read.
            CursorError: The cursor is broken, or of another search.
            ConfigError: The collection has no vectors of that kind, or the vector does not fit.
        """
        place = begin(query, self._info, newest=_SEQUENCE)
        filters = self._filter(query.where, query.kind)
        hidden = {row.product_id for row in self.get(sorted(query.without))}
        wanted = place.hits + query.limit + 1 + len(hidden)
        while True:
            number = min(wanted + 8, MOST_AT_ONCE)
            found = self._nearest(query.kind, place.vector, number, filters)
            complete = len(found) < number or number == MOST_AT_ONCE
            later = _after(found, place, grouped=query.grouped, hidden=hidden)
            # Rows as good as the last one that was found may not have been found.
            if complete or (len(later) > query.limit and later[query.limit][0] > found[-1][0]):
                return self._page(query, place, later)
            wanted *= 4

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _nearest(self, kind: str, vector: np.ndarray, number: int, filters: str) -> list[tuple[float, str, str]]:
        """Score, id and product of the nearest rows, in their order; scores are computed here, always alike."""
        (hits,) = self._client.search(
            self._name,
            data=[vector.tolist()],
            anns_field=kind,
            filter=filters,
            limit=number,
            output_fields=["id", "product_id", kind],
            search_params={"metric_type": "IP"},
        )
        rows = [hit["entity"] for hit in hits]
        if not rows:
            return []
        scores = exact_scores(np.array([row[kind] for row in rows], np.float16), vector)
        found = [(float(s), row["id"], row["product_id"]) for s, row in zip(scores, rows, strict=True)]
        return sorted(found, key=lambda row: (-row[0], row[1]))

    def _page(self, query: Query, place: Place, later: Sequence[tuple[float, str, str]]) -> Page:
        shown = later[: query.limit]
        rows = {row.id: row for row in self.get([row_id for _, row_id, _ in shown])}
        hits = [
            Hit(row.id, row.product_id, score, {"title": row.title, "attributes": row.attributes})
            for score, row_id, _ in shown
            if (row := rows.get(row_id)) is not None
        ]
        if len(later) <= query.limit:
            return Page(hits, None)
        end = Place(place.vector, _SEQUENCE, place.hits + len(shown), shown[-1][0], shown[-1][1])
        return Page(hits, write_cursor(query, end))

    def _filter(self, where: str, kind: str | None) -> str:
        parts = [f"has_{kind} == true"] if kind else []
        if where.strip():
            parts.append(expression(parse_filter(where, kinds_of(self._info)), self._columns))
        return " and ".join(parts)

    def _query(self, ids: list[str], fields: list[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), 1000):
            found += self._client.query(self._name, ids=ids[start : start + 1000], output_fields=["id", *fields])
        return found

    def _row(self, item: Item, vectors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": item.id,
            "product_id": item.product_id,
            "title": item.title,
            "picture": _small(item.picture),
            "digest": item.digest,
            **self._fields(item.attributes),
        }
        for kind, vector in vectors.items():
            row[f"has_{kind}"] = kind in item.vectors
            row[kind] = vector.astype(np.float32).tolist()  # of float16 numbers, as on disk
        return row

    def _fields(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes as they are shown, and as fields that filters compare."""
        fields: dict[str, Any] = {"attributes": json.dumps(dict(attributes), ensure_ascii=False, default=str)}
        for attribute, column in self._columns.items():
            number = self._info.attributes[attribute] == "number"
            value = attributes.get(attribute)
            if value is None or value == "":
                fields[column] = MISSING_NUMBER if number else ""
            else:
                fields[column] = float(value) if number else str(value)
        return fields

    def _stored(self, row: Mapping[str, Any]) -> StoredRow:
        kinds = tuple(kind for kind in self._info.kinds if row[f"has_{kind}"])
        return StoredRow(
            row["id"], -1, _SEQUENCE, row["product_id"], row["title"], json.loads(row["attributes"]), kinds
        )


def collection_exists(uri: str) -> bool:
    """Whether there is such a collection."""
    client, name = _connect(uri)
    return bool(client.has_collection(name))


def _after(
    found: Sequence[tuple[float, str, str]], place: Place, *, grouped: bool, hidden: set[str]
) -> list[tuple[float, str, str]]:
    """What comes after a place, one row per product where asked."""
    seen, later = set(hidden), []
    for score, row_id, product in found:
        if product in seen:
            continue
        if grouped:
            seen.add(product)
        if (-score, row_id) > (-place.score, place.id):
            later.append((score, row_id, product))
    return later


def _small(picture: bytes | None) -> str:
    """A picture that fits into a field of Milvus."""
    if picture is None:
        return ""
    side = 512
    while len(encoded := base64.b64encode(picture).decode()) > MOST_TEXT:
        picture, side = shown_picture(picture, most_bytes=0, side=side), side // 2
    return encoded


def _connect(uri: str) -> tuple[Any, str]:
    """Client and name of the collection."""
    try:
        import pymilvus
    except ImportError:
        raise MissingExtra("pymilvus", "milvus") from None
    address, _, name = uri.removeprefix("milvus:").rpartition("/")
    if not address or not name:
        raise ConfigError(f"{uri!r} names no collection; write milvus://host:19530/name or milvus:FILE.db/name")
    try:
        if address.startswith("//"):
            return pymilvus.MilvusClient(f"http:{address}"), name
        return pymilvus.MilvusClient(str(Path(address).resolve())), name
    except pymilvus.MilvusException as error:
        raise CatalogueError(f"no Milvus answers at {uri}: {error}") from error
