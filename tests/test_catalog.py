"""The catalog on disk: what was accepted is there, whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dualtower.config import to_dict
from dualtower.errors import CatalogError, ConfigError, DataError, UnknownRow
from dualtower.search.filters import parse_filter
from dualtower.search.local import vector_file as vectors_room
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.vector_file import VectorFile
from dualtower.search.local.view import ViewKeeper
from dualtower.search.records import CatalogInfo, EmbeddedItem, StoredRow, attribute_types

DIM = 8
ATTRIBUTES = {"color": "text", "price": "number"}


def info(**more) -> CatalogInfo:
    return CatalogInfo(**{"model": "m", "fingerprint": "f", "dim": DIM, "attributes": ATTRIBUTES, **more})


def item(row_id: str, seed: int = 0, **more) -> EmbeddedItem:
    vectors = np.random.default_rng(seed).normal(size=(2, DIM)).astype(np.float16)
    given = {
        "product_id": f"p{row_id}",
        "title": f"title {row_id}",
        "attributes": {"color": "Red", "price": float(seed)},
        "vectors": {"image": vectors[0], "text": vectors[1]},
        "image": b"image " + row_id.encode(),
    }
    return EmbeddedItem(id=row_id, **{**given, **more})


def stored_vectors(catalog: Catalog, rows: Sequence[StoredRow], kind: str) -> np.ndarray:
    """What lies in the files, float16 ``[N, D]``."""
    view = ViewKeeper(catalog).current()
    return view.vectors[kind].gather(view.slots_of(np.array([row.number for row in rows])))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.create(tmp_path / "shop", info())


def test_rows_come_back_as_they_went_in(catalog: Catalog) -> None:
    catalog.upsert([item("a", 1), item("b", 2)])
    catalog.close()
    again = Catalog(catalog.folder)
    (row,) = again.get(["b", "nothing"])
    assert (row.id, row.product_id, row.title, row.vector_names) == ("b", "pb", "title b", ("image", "text"))
    assert row.attributes == {"color": "Red", "price": 2.0}
    assert again.image("b") == b"image b" and again.image("nothing") is None
    assert (stored_vectors(again, [row], "text")[0] == item("b", 2).vectors["text"]).all()
    assert sorted(again.digests()) == ["a", "b"] and len(again) == 2 and again.verify() == []


def test_a_row_is_replaced_and_a_deleted_one_gone(catalog: Catalog) -> None:
    catalog.upsert([item("a", 1), item("b", 2)])
    catalog.upsert([item("a", 3, title="new", image=None)])
    assert catalog.get(["a"])[0].title == "new" and catalog.image("a") is None and len(catalog) == 2
    assert catalog.delete(["b", "nothing", "b"]) == 1
    assert catalog.delete(["b"]) == 0
    assert [row.id for row in catalog.get(["a", "b"])] == ["a"] and catalog.verify() == []


def test_compaction_frees_what_is_gone_and_keeps_the_rest(catalog: Catalog) -> None:
    catalog.upsert([item(str(i), i) for i in range(20)])
    catalog.upsert([item("3", 100)])
    catalog.delete([str(i) for i in range(0, 20, 2)])
    before = {row.id: row for row in catalog.get(list(catalog.digests()))}
    view = ViewKeeper(catalog).current()  # a reader from before goes on
    assert catalog.compact() == 11 and catalog.state.next_slot == 10
    assert catalog.verify() == [] and len(list((catalog.folder / "vectors").iterdir())) == 2
    rows = catalog.get(list(before))
    assert rows == [before[row.id]._replace(sequence=row.sequence) for row in rows]
    assert all(catalog.image(row.id) is not None for row in rows)
    old = view.vectors["image"].gather(view.slots_of(np.array([row.number for row in rows])))
    assert (stored_vectors(catalog, rows, "image") == old).all()


def test_a_changed_byte_is_found(catalog: Catalog) -> None:
    catalog.upsert([item("a", 1), item("b", 2)])
    path = catalog.vectors("image").path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = catalog.verify()
    assert "row 'b': its image vector has changed on the disk" in problem
    path.write_bytes(content[:-1])
    assert any("holds 1 of 2 vectors" in problem for problem in catalog.verify())


def test_a_view_follows_and_is_kept(catalog: Catalog) -> None:
    keeper = ViewKeeper(catalog)
    catalog.upsert([item("a", 1), item("b", 2, vectors={"text": np.ones(DIM)})])
    first = keeper.current()
    assert len(first) == 2 and first.has["image"].tolist() == [True, False]
    keeper.save()
    catalog.upsert([item("a", 3, attributes={"color": "Blue"}), item("c", 4)])
    catalog.delete(["b"])
    second, fresh = keeper.current(), ViewKeeper(Catalog(catalog.folder)).current()
    assert len(first) == 2  # as it was
    for view in (second, fresh):
        assert view.live.tolist() == [False, False, True, True]
        assert view.live_at(first.state.sequence).tolist() == [True, True, False, False]
        assert view.columns.of["color"].vocabulary.texts() == ["Red", "Blue"]
    (catalog.folder / "cache" / "view.npz").write_bytes(b"not a zip file")
    assert len(ViewKeeper(catalog).current()) == 2
    catalog.compact()
    assert keeper.newest().live.tolist() == [True, True]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"vectors": {"image": np.ones(DIM + 1)}}, "does not fit"),
        ({"vectors": {"sound": np.ones(DIM)}}, "does not fit"),
        ({"vectors": {"image": np.full(DIM, np.nan)}}, "finite"),
        ({"attributes": {"brand": "x"}}, "no attribute 'brand'; known: color, price"),
        ({"attributes": {"price": "cheap"}}, "'price' is 'cheap', which is no number"),
        ({"attributes": {"price": "7"}}, "'price' is '7', which is no number"),
        ({"attributes": {"price": float("nan")}}, "item 'bad': attribute 'price' is nan; give a finite number"),
        ({"attributes": {"color": float("inf")}}, "'color' is inf"),
        ({"attributes": {"price": 10**400}}, "'price' is 1000"),
        ({"vectors": {"image": np.full(DIM, 1e30)}}, "finite"),
    ],
)
def test_bad_items_are_refused_whole(catalog: Catalog, bad: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        catalog.upsert([item("good"), item("bad", **bad)])
    assert len(catalog) == 0 and catalog.state.next_slot == 0


def test_it_is_opened_and_verified_without_torch(catalog: Catalog) -> None:
    """Which takes several times as long to load as a catalog's own rooms."""
    catalog.upsert([item("a", 1)])
    script = textwrap.dedent("""
        import sys
        from dualtower.search.store import open_store
        store = open_store(sys.argv[1])
        print([row.id for row in store.get(["a"])], store.catalog.verify(), store.catalog.delete(["a"]))
        print([name for name in ("torch", "transformers", "timm", "datasets", "pandas") if name in sys.modules])
    """)
    words = [sys.executable, "-c", script, str(catalog.folder)]
    assert subprocess.run(words, capture_output=True, text=True, timeout=60).stdout == "['a'] [] 1\n[]\n"


def test_bad_folders_are_named(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="no catalog in"):
        Catalog(tmp_path / "nothing")
    with pytest.raises(CatalogError, match="is not empty"):
        Catalog.create(catalog.folder, info())
    with pytest.raises(DataError, match="same id"):
        catalog.upsert([item("a"), item("a")])
    with pytest.raises(ConfigError, match="no 'sound' vectors"):
        catalog.vectors("sound")
    (catalog.folder / "catalog.json").write_text('{"model": "m", "fingerprint": "f", "dim": 8, "format": 99}')
    with pytest.raises(CatalogError, match="format 99"):
        Catalog(catalog.folder)


def test_writers_take_turns(catalog: Catalog) -> None:
    def write(name: int) -> None:
        own = Catalog(catalog.folder)
        for i in range(10):
            own.upsert([item(f"{name}-{i}", i)])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(catalog) == 40 and catalog.state.next_slot == 40 and catalog.verify() == []


@pytest.mark.slow
def test_killed_at_any_moment_nothing_accepted_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of the benchmark's two hundred kills."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import crash

    during, searches = crash.run(tmp_path / "crash", kills=5, longest=0.5)
    assert during.total() == 5 and searches >= 2


def test_a_full_disk_refuses_and_keeps_what_was_accepted(catalog: Catalog) -> None:
    """A real limit: this process may not write files of more than some size."""
    script = textwrap.dedent(f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_catalog import item
        from dualtower.errors import CatalogError
        from dualtower.search.local.catalog import Catalog
        catalog = Catalog({str(catalog.folder)!r})
        catalog.upsert([item(str(i), i) for i in range(50)])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
        try:
            catalog.upsert([item(str(i), i, title="new") for i in range(100)])
        except CatalogError as error:
            assert "What was accepted before is intact" in str(error), error
            sys.exit(7)
    """)
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7
    assert len(catalog) == 50 and catalog.verify() == []
    assert {row.title for row in catalog.get(["1"])} == {"title 1"}
    catalog.upsert([item("51", 51)])
    assert time.time() and len(catalog) == 51


@pytest.mark.parametrize("name, number", [("catalogue.json", 2), ("catalog.json", 1)])
def test_a_catalog_of_an_earlier_format_is_refused_in_one_line(tmp_path: Path, name: str, number: int) -> None:
    folder = tmp_path / "old"
    Catalog.create(folder, info()).close()
    (folder / "catalog.json").unlink()
    (folder / name).write_text(json.dumps({**to_dict(info()), "format": number}))
    with pytest.raises(CatalogError, match="index it anew: `dualtower index MODEL --out NEW_FOLDER`") as caught:
        Catalog(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("small", [0, vectors_room.SMALL])
def test_vectors_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(vectors_room, "SMALL", small)
    vectors = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float16)
    file = VectorFile(tmp_path / "v.f16", 4)
    file.write(0, vectors)
    reader = file.open(len(vectors))
    every = np.arange(3000)
    for slots in ([], [7], [5, 6, 7], [3, 5, 4, 6], [2, 2], every, every[::-1], every[::2]):
        np.testing.assert_array_equal(reader.gather(np.array(slots, np.int64)), vectors[np.array(slots, np.int64)])


def test_threads_that_come_and_go_leave_no_connections_behind(tmp_path: Path) -> None:
    catalog = Catalog.create(tmp_path / "shop", CatalogInfo("m", "f", 4))
    together = threading.Barrier(3)

    def read() -> None:
        for _ in range(50):
            assert len(catalog) == 0
        together.wait()

    for _ in range(5):
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 1 <= len(catalog._database._idle) <= 3


def test_attributes_change_and_all_else_stays(catalog: Catalog) -> None:
    catalog.upsert([item("a", 1), item("b", 2)])
    before = catalog.get(["a"])[0]
    size = catalog.vectors("image").path.stat().st_size
    assert catalog.update_attributes({"a": {"price": 9.99}, "b": {"color": None}}) == 2
    after = catalog.get(["a"])[0]
    assert after.attributes == {"color": "Red", "price": 9.99}
    assert after._replace(attributes={}, updated=None) == before._replace(attributes={})
    assert catalog.image("a") == b"image a" and catalog.vectors("image").path.stat().st_size == size
    assert catalog.get(["b"])[0].attributes == {"color": None, "price": 2.0}
    assert catalog.verify() == [] and len(catalog) == 2
    assert catalog.digests()["a"] == ""  # what it was made from is no longer all that it holds
    state = catalog.state
    assert catalog.update_attributes({"a": {"price": 9.99}}) == 0 and catalog.state == state


def test_attributes_of_unknown_rows_change_nothing(catalog: Catalog) -> None:
    catalog.upsert([item("a", 1)])
    with pytest.raises(UnknownRow, match="no row 'nobody'") as caught:
        catalog.update_attributes({"a": {"price": 5}, "nobody": {"price": 5}})
    assert caught.value.ids == ["nobody"]
    for bad, message in (
        ({"brand": "x"}, "no attribute 'brand'; known: color, price"),
        ({"price": "cheap"}, "'price' is 'cheap', which is no number"),
        ({"title": "x"}, "no attribute 'title'"),
    ):
        with pytest.raises(DataError, match=message):
            catalog.update_attributes({"a": bad})
    assert catalog.get(["a"])[0].attributes["price"] == 1.0


def test_attributes_that_vectors_are_made_from_ask_for_the_whole_row(tmp_path: Path) -> None:
    fused = Catalog.create(tmp_path / "fused", info(embedded_attributes=("color",)))
    fused.upsert([item("a", 1)])
    with pytest.raises(DataError, match="product vectors of this catalog are made from 'color'"):
        fused.update_attributes({"a": {"color": "Blue"}})
    assert fused.update_attributes({"a": {"price": 2.5}}) == 1


def test_a_view_follows_changed_attributes(catalog: Catalog) -> None:
    """Beside other changes, from the cache, and over a compaction; and the row was born when it was born."""
    keeper = ViewKeeper(catalog)
    catalog.upsert([item("a", 1), item("b", 2), item("c", 3)])
    first = keeper.current()
    keeper.save()
    catalog.update_attributes({"b": {"price": 50, "color": "Mauve"}})
    catalog.upsert([item("a", 4)])
    catalog.update_attributes({"a": {"price": None}})
    kinds = attribute_types(catalog.info)
    prices = parse_filter("price > 2.5", kinds), parse_filter("color = 'Mauve'", kinds)
    for view in (keeper.current(), ViewKeeper(Catalog(catalog.folder)).current()):
        assert [(view.live & view.columns.satisfies(part)).tolist() for part in prices] == [
            [False, True, True, False],
            [False, True, False, False],
        ]
        assert view.live_at(first.state.sequence).tolist() == [True, True, True, False]
    assert first.columns.satisfies(prices[0]).tolist() == [False, False, True]  # as it was
    catalog.compact()
    view = keeper.newest()
    assert (view.live & view.columns.satisfies(prices[0])).tolist() == [True, True, False]
