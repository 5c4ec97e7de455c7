"""Views of large catalogues: made in little memory, and beside the searches."""

from __future__ import annotations

import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_catalogue import DIM, info, item

from dualtower.errors import CatalogueError
from dualtower.retrieval import view as view_room
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.columns import TextColumn
from dualtower.retrieval.filters import Comparison
from dualtower.retrieval.local import LocalStore
from dualtower.retrieval.queries import Query
from dualtower.retrieval.records import Item
from dualtower.retrieval.view import View, ViewKeeper
from dualtower.retrieval.vocabulary import Vocabulary

ROWS = 40_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    attributes = {**{f"text{i}": "text" for i in range(5)}, "sku": "text", "price": "number"}
    catalogue = Catalogue.create(tmp_path_factory.mktemp("large") / "shop", info(attributes=attributes))
    vector = np.ones(DIM, np.float16)
    catalogue.upsert(
        [
            Item(
                f"id{i}",
                f"product {i}",
                f"the title of row {i}",
                {**{f"text{j}": f"value {i % 50} of attribute {j}" for j in range(5)}, "sku": f"sku{i}", "price": i},
                {"image": vector, "text": vector},
            )
            for i in range(ROWS)
        ]
    )
    return catalogue


def test_a_view_is_made_in_little_memory(large: Catalogue) -> None:
    ViewKeeper(large).current()  # what is imported on the way counts for nothing
    tracemalloc.start()
    view = ViewKeeper(large).current()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(view) == ROWS
    assert held / ROWS < 120 and peak / ROWS < 450, (held / ROWS, peak / ROWS)


def test_a_kept_view_is_the_same(large: Catalogue) -> None:
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
    catalogue = Catalogue.create(tmp_path / "shop", info())
    catalogue.upsert([item("a", 1), item("b", 2), item("c", 3)])
    gate = threading.Event()

    def prepare(view: View) -> None:
        gate.wait(30)

    keeper = ViewKeeper(catalogue, prepare)
    before = keeper.current()
    other = Catalogue(catalogue.folder)  # as another process has it
    other.delete(["b"])
    other.compact()
    assert keeper.current() is before and keeper.current() is before  # it is being made
    with pytest.raises(CatalogueError):
        catalogue.vectors("image", 0).open(1)
    assert before.vectors["image"].gather(np.array([0])).shape == (1, DIM)  # still readable
    found: list[View] = []
    catalogue.upsert([item("d", 4)])
    waiting = threading.Thread(target=lambda: found.append(keeper.current()))  # who has written has to see it
    waiting.start()
    time.sleep(0.2)
    assert not found
    gate.set()
    waiting.join(30)
    assert len(found[0]) == 3 and found[0].state == catalogue.state


def test_a_view_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path / "shop", info())
    catalogue.upsert([item("a", 1), item("b", 2)])
    store = LocalStore(catalogue.folder)
    query = Query(np.ones(DIM, np.float32), limit=2)
    assert len(store.search(query).hits) == 2
    catalogue.compact()
    catalogue.vectors("image").path.unlink()
    with pytest.raises(CatalogueError, match="holds 0 of 2 vectors"):
        for _ in range(200):
            assert len(store.search(query).hits) == 2  # of the old files
            time.sleep(0.02)
    with pytest.raises(CatalogueError, match="holds 0 of 2 vectors"):
        store.search(replace(query, limit=1))


def test_whatever_a_view_fails_by_the_next_search_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue.create(tmp_path / "shop", info())
    catalogue.upsert([item("a", 1), item("b", 2)])
    store = LocalStore(catalogue.folder)
    query = Query(np.ones(DIM, np.float32), limit=2)
    assert len(store.search(query).hits) == 2
    catalogue.compact()

    def fail(*_: object) -> None:
        raise MemoryError("no room for a view")

    monkeypatch.setattr(view_room, "_newest", fail)
    with pytest.raises(MemoryError):
        for _ in range(200):
            store.search(query)
            time.sleep(0.02)


def test_searches_do_not_wait_for_the_index_of_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue.create(tmp_path / "shop", info())
    catalogue.upsert([item("a", 1), item("b", 2), item("c", 3)])
    store = LocalStore(catalogue.folder)
    query = Query(np.ones(DIM, np.float32), limit=3)
    assert len(store.search(query).hits) == 3
    loaded, load = list[str](), store._load

    def observed(view: View, kind: str, stamp: int) -> object:
        loaded.append(threading.current_thread().name)
        return load(view, kind, stamp)

    monkeypatch.setattr(store, "_load", observed)
    catalogue.delete(["b"])
    for generation in (1, 2):
        catalogue.compact()
        until = time.monotonic() + 20
        while store.searcher.views.current().state.generation < generation and time.monotonic() < until:
            assert len(store.search(query).hits) == 2
            time.sleep(0.02)
        assert [hit.id for hit in store.search(query).hits] == [
            hit.id for hit in LocalStore(catalogue.folder).search(query).hits
        ]
        assert loaded == ["view"] * generation and not store._prepared


def test_a_view_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path / "shop", info())
    catalogue.upsert([item("a", 1), item("b", 2)])
    prepared = list[View]()
    keeper = view_room.ViewKeeper(catalogue, prepared.append)
    keeper.current()
    catalogue.delete(["b"])
    catalogue.compact()
    for _ in range(2):  # two searches that saw the old view, one after the other
        keeper._lock.acquire()
        keeper._renew_beside()
    assert len(prepared) == 1 and prepared[0] is keeper.current()
