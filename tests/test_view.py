"""Views of large catalogs: made in little memory, and beside the searches."""

from __future__ import annotations

import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_catalog import DIM, info, item

from dualtower.errors import CatalogError
from dualtower.search.filters import Comparison
from dualtower.search.local import view as view_room
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.columns import TextColumn
from dualtower.search.local.store import LocalStore
from dualtower.search.local.view import View, ViewKeeper
from dualtower.search.local.vocabulary import Vocabulary
from dualtower.search.queries import Query
from dualtower.search.records import EmbeddedItem

ROWS = 40_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    attributes = {**{f"text{i}": "text" for i in range(5)}, "sku": "text", "price": "number"}
    catalog = Catalog.create(tmp_path_factory.mktemp("large") / "shop", info(attributes=attributes))
    vector = np.ones(DIM, np.float16)
    catalog.upsert(
        [
            EmbeddedItem(
                f"id{i}",
                f"product {i}",
                f"the title of row {i}",
                {**{f"text{j}": f"value {i % 50} of attribute {j}" for j in range(5)}, "sku": f"sku{i}", "price": i},
                {"image": vector, "text": vector},
            )
            for i in range(ROWS)
        ]
    )
    return catalog


def test_a_view_is_made_in_little_memory(large: Catalog) -> None:
    ViewKeeper(large).current()  # what is imported on the way counts for nothing
    tracemalloc.start()
    view = ViewKeeper(large).current()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(view) == ROWS
    assert held / ROWS < 120 and peak / ROWS < 450, (held / ROWS, peak / ROWS)


def test_a_kept_view_is_the_same(large: Catalog) -> None:
    ViewKeeper(large).save()
    kept = ViewKeeper(large).current()
    (large.folder / "cache" / "view.npz").unlink()
    made = ViewKeeper(large).current()
    assert kept.state == made.state
    for name, column in made.columns.of.items():
        other = kept.columns.of[name]
        if isinstance(column, TextColumn) and isinstance(other, TextColumn):
            assert (column.codes == other.codes).all() and column.vocabulary.texts() == other.vocabulary.texts()
            for value in ("sku7", "value 7 of attribute 0", "none"):
                part = Comparison(name, "=", (value,))
                assert (column.satisfies(part) == other.satisfies(part)).all()


def test_a_vocabulary_numbers_texts_in_their_order() -> None:
    first = Vocabulary.empty().extended(["b", "a", "ü"])
    second = first.extended(["c", "a", ""])
    assert first.texts() == ["b", "a", "ü"] and second.texts() == ["b", "a", "ü", "c", ""]
    assert second.codes_of(["ü", "c", "x", "b"]).tolist() == [2, 3, -1, 0] and second.text(3) == "c"
    assert Vocabulary.restored(second.arrays()).texts() == second.texts()
    assert Vocabulary.restored(Vocabulary.empty().arrays()).extended(["a"]).texts() == ["a"]


def test_searches_go_on_while_the_view_of_a_compaction_is_made(tmp_path: Path) -> None:
    catalog = Catalog.create(tmp_path / "shop", info())
    catalog.upsert([item("a", 1), item("b", 2), item("c", 3)])
    gate = threading.Event()

    def prepare(view: View) -> None:
        gate.wait(30)

    keeper = ViewKeeper(catalog, prepare)
    before = keeper.current()
    other = Catalog(catalog.folder)  # as another process has it
    other.delete(["b"])
    other.compact()
    assert keeper.current() is before and keeper.current() is before  # it is being made
    with pytest.raises(CatalogError):
        catalog.vectors("image", 0).open(1)
    assert before.vectors["image"].gather(np.array([0])).shape == (1, DIM)  # still readable
    found: list[View] = []
    catalog.upsert([item("d", 4)])
    waiting = threading.Thread(target=lambda: found.append(keeper.current()))  # who has written has to see it
    waiting.start()
    time.sleep(0.2)
    assert not found
    gate.set()
    waiting.join(30)
    assert len(found[0]) == 3 and found[0].state == catalog.state


def test_a_view_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    catalog = Catalog.create(tmp_path / "shop", info())
    catalog.upsert([item("a", 1), item("b", 2)])
    store = LocalStore(catalog.folder)
    query = Query(np.ones(DIM, np.float32), limit=2)
    assert len(store.search(query).hits) == 2
    catalog.compact()
    catalog.vectors("image").path.unlink()
    with pytest.raises(CatalogError, match="holds 0 of 2 vectors"):
        for _ in range(200):
            assert len(store.search(query).hits) == 2  # of the old files
            time.sleep(0.02)
    with pytest.raises(CatalogError, match="holds 0 of 2 vectors"):
        store.search(replace(query, limit=1))


def test_whatever_a_view_fails_by_the_next_search_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog.create(tmp_path / "shop", info())
    catalog.upsert([item("a", 1), item("b", 2)])
    store = LocalStore(catalog.folder)
    query = Query(np.ones(DIM, np.float32), limit=2)
    assert len(store.search(query).hits) == 2
    catalog.compact()

    def fail(*_: object) -> None:
        raise MemoryError("no room for a view")

    monkeypatch.setattr(view_room, "_newest", fail)
    with pytest.raises(MemoryError):
        for _ in range(200):
            store.search(query)
            time.sleep(0.02)


def test_searches_do_not_wait_for_the_index_of_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog.create(tmp_path / "shop", info())
    catalog.upsert([item("a", 1), item("b", 2), item("c", 3)])
    store = LocalStore(catalog.folder)
    query = Query(np.ones(DIM, np.float32), limit=3)
    assert len(store.search(query).hits) == 3
    loaded, load = list[str](), store._load

    def observed(view: View, kind: str, stamp: int) -> object:
        loaded.append(threading.current_thread().name)
        return load(view, kind, stamp)

    monkeypatch.setattr(store, "_load", observed)
    catalog.delete(["b"])
    for generation in (1, 2):
        catalog.compact()
        until = time.monotonic() + 20
        while store.searcher.views.current().state.generation < generation and time.monotonic() < until:
            assert len(store.search(query).hits) == 2
            time.sleep(0.02)
        assert [hit.id for hit in store.search(query).hits] == [
            hit.id for hit in LocalStore(catalog.folder).search(query).hits
        ]
        assert loaded == ["view"] * generation and not store._prepared


def test_a_view_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    catalog = Catalog.create(tmp_path / "shop", info())
    catalog.upsert([item("a", 1), item("b", 2)])
    prepared = list[View]()
    keeper = view_room.ViewKeeper(catalog, prepared.append)
    keeper.current()
    catalog.delete(["b"])
    catalog.compact()
    for _ in range(2):  # two searches that saw the old view, one after the other
        keeper._lock.acquire()
        keeper._renew_beside()
    assert len(prepared) == 1 and prepared[0] is keeper.current()
