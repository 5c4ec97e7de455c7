"""Milvus as a store: the same random operations on disk, in Milvus Lite and in a plain scan give the same hits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_catalog import DIM, info
from test_search import FILTERS, changed_attributes, pages, plain_search, some_item, some_query

from dualtower.errors import CatalogError, ConfigError, CursorError, DataError, UnknownRow
from dualtower.search.filters import matches, parse_filter
from dualtower.search.milvus.store import MilvusStore
from dualtower.search.queries import Query
from dualtower.search.records import EmbeddedItem
from dualtower.search.store import Store, create_store, open_store, store_exists

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"milvus:{tmp_path / 'shop.db'}/shop"


@pytest.fixture
def store(uri: str) -> Iterator[Store]:
    made = create_store(uri, info())
    yield made
    made.close()


def test_random_operations_agree(tmp_path: Path, store: Store) -> None:
    dice, held = random.Random(0), {}
    local = create_store(tmp_path / "local", info())
    for step in range(30):
        if dice.random() < 0.6:
            written = {i: some_item(dice, i) for i in {str(dice.randrange(120)) for _ in range(dice.randrange(1, 12))}}
            for each in (store, local):
                each.upsert(list(written.values()))
            held |= written
        elif dice.random() < 0.5:
            state = dice.getstate()
            changed_attributes(dice, held, store)
            dice.setstate(state)
            held |= changed_attributes(dice, held, local)
        else:
            gone = [str(dice.randrange(120)) for _ in range(4)]
            assert store.delete(gone) == local.delete(gone)
            held = {i: item for i, item in held.items() if i not in gone}
        query = some_query(dice)
        wanted = plain_search(held, query, 3 * query.limit)
        for each in (store, local):
            got = [(hit.id, hit.score) for page in pages(each, query, 3) for hit in page.hits]
            assert got == wanted, (type(each).__name__, step, query)
        assert len(store) == len(local) == len(held)
    ids = sorted(held)
    for row, other in zip(store.get(ids), local.get(ids), strict=True):
        of_the_store = {"number": 0, "sequence": 0, "updated": None, "checksums": "[]"}
        assert row._replace(**of_the_store) == other._replace(**of_the_store)
        mine, theirs = store.vector(row.id, "text"), local.vector(row.id, "text")
        assert mine is not None and theirs is not None and (mine == theirs).all()
        assert (store.vector(row.id, "image") is None) == (local.vector(row.id, "image") is None)
    assert store.digests() == local.digests()
    for where in FILTERS:
        assert store.counts(where) == local.counts(where), where


def test_filters_mean_the_same(store: Store) -> None:
    dice = random.Random(3)
    catalog_items = {str(i): some_item(dice, str(i)) for i in range(60)}
    store.upsert(list(catalog_items.values()))
    kinds: Any = {"color": "text", "price": "number"}
    for where in [*FILTERS[1:], "price != 20", "not price != 20", "price < 0", "price <= 20", "not color in ('Red')",
                  "color = 'it\\'s \"quoted\"'", "not (price > 5 and not color != 'Blue')"]:  # fmt: skip
        part = parse_filter(where, kinds)
        wanted = {row_id for row_id, item in catalog_items.items() if matches(part, item.attributes)}
        query = Query(np.ones(DIM, np.float32), "text", where, limit=100, group_by_product=False)
        assert {hit.id for hit in store.search(query).hits} == wanted, where


def test_it_is_opened_again_and_bad_use_is_named(uri: str, store: Store) -> None:
    dice = random.Random(1)
    item = replace(some_item(dice, "1"), image=b"\x89PNG\r\n\x1a\n image")
    store.upsert([item])
    assert store_exists(uri) and not store_exists(uri.replace("/shop", "/other").replace("/other.db", "/shop.db"))
    again = open_store(uri)
    assert again.info == store.info and again.image("1") == item.image
    with pytest.raises(CatalogError, match="exists already"):
        create_store(uri, info())
    with pytest.raises(ConfigError, match="names no collection"):
        open_store("milvus:nothing")
    with pytest.raises(DataError, match="no attribute 'brand'"):
        store.upsert([replace(item, attributes={"brand": "x"})])
    query = Query(np.ones(DIM, np.float32), "text")
    with pytest.raises(CursorError, match="broken"):
        store.search(replace(query, cursor="xyz"))
    with pytest.raises(ConfigError, match="no 'product' vectors"):
        store.search(replace(query, vector_name="product"))


def test_attributes_change_and_all_else_stays(store: Store) -> None:
    item = EmbeddedItem("1", "p", "title", {"color": "Red", "price": 5.0}, {"text": np.ones(DIM)}, b"\x89PNG", "digest")
    store.upsert([item])
    assert store.update_attributes({"1": {"price": None}}) == 1
    (row,) = store.get(["1"])
    assert row.attributes == {"color": "Red", "price": None} and (row.title, row.vector_names) == ("title", ("text",))
    vector = store.vector("1", "text")
    assert store.image("1") == b"\x89PNG" and vector is not None and (vector == 1).all()
    query = Query(np.ones(DIM, np.float32), "text")
    assert not store.search(replace(query, where="price > 0")).hits
    with pytest.raises(UnknownRow, match="no row 'x'"):
        store.update_attributes({"1": {"price": 7}, "x": {"price": 7}})
    with pytest.raises(DataError, match="no attribute 'brand'"):
        store.update_attributes({"1": {"brand": "x"}})
    assert store.get(["1"]) == [row]


def test_recall_is_measured_against_all_vectors(store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import milvus_recall

    vectors = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store.upsert(
        [EmbeddedItem(str(i), str(i), "", {}, {"image": vector, "text": -vector}) for i, vector in enumerate(vectors)]
    )
    measured = milvus_recall.measure(store, queries=20, k=10)
    assert len(measured) == 4
    assert all(one["recall"] == one["lowest"] == 1 and one["rows"] == 300 for one in measured)
    whole = MilvusStore.search_many

    def without_the_best(self: MilvusStore, queries: list[Query]) -> list[Any]:
        found = whole(self, [replace(query, limit=2 * query.limit) for query in queries])
        return [replace(page, hits=page.hits[3 : 3 + query.limit]) for page, query in zip(found, queries, strict=True)]

    monkeypatch.setattr(MilvusStore, "search_many", without_the_best)
    assert all(one["recall"] == 0.7 for one in milvus_recall.measure(store, queries=20, k=10))
