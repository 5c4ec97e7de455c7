"""The catalogue on disk: what was accepted is there, whatever happens."""

from __future__ import annotations

import json
import sqlite3
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
from dualtower.errors import CatalogueError, ConfigError, DataError, UnknownRow
from dualtower.retrieval import vectors as vectors_room
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.filters import parse_filter
from dualtower.retrieval.records import CatalogueInfo, Item, StoredRow, kinds_of
from dualtower.retrieval.vectors import VectorFile, crcs_of
from dualtower.retrieval.view import ViewKeeper

DIM = 8
ATTRIBUTES = {"colour": "text", "price": "number"}


def info(**more) -> CatalogueInfo:
    return CatalogueInfo(**{"model": "m", "fingerprint": "f", "dim": DIM, "attributes": ATTRIBUTES, **more})


def item(row_id: str, seed: int = 0, **more) -> Item:
    vectors = np.random.default_rng(seed).normal(size=(2, DIM)).astype(np.float16)
    given = {
        "product_id": f"p{row_id}",
        "title": f"title {row_id}",
        "attributes": {"colour": "Red", "price": float(seed)},
        "vectors": {"image": vectors[0], "text": vectors[1]},
        "picture": b"picture " + row_id.encode(),
    }
    return Item(id=row_id, **{**given, **more})


def stored_vectors(catalogue: Catalogue, rows: Sequence[StoredRow], kind: str) -> np.ndarray:
    """What lies in the files, float16 ``[N, D]``."""
    view = ViewKeeper(catalogue).current()
    return view.vectors[kind].gather(view.slots_of(np.array([row.number for row in rows])))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue.create(tmp_path / "shop", info())


def test_rows_come_back_as_they_went_in(catalogue: Catalogue) -> None:
    catalogue.upsert([item("a", 1), item("b", 2)])
    catalogue.close()
    again = Catalogue(catalogue.folder)
    (row,) = again.get(["b", "nothing"])
    assert (row.id, row.product_id, row.title, row.kinds) == ("b", "pb", "title b", ("image", "text"))
    assert row.attributes == {"colour": "Red", "price": 2.0}
    assert again.picture("b") == b"picture b" and again.picture("nothing") is None
    assert (stored_vectors(again, [row], "text")[0] == item("b", 2).vectors["text"]).all()
    assert sorted(again.digests()) == ["a", "b"] and len(again) == 2 and again.verify() == []


def test_a_row_is_replaced_and_a_deleted_one_gone(catalogue: Catalogue) -> None:
    catalogue.upsert([item("a", 1), item("b", 2)])
    catalogue.upsert([item("a", 3, title="new", picture=None)])
    assert catalogue.get(["a"])[0].title == "new" and catalogue.picture("a") is None and len(catalogue) == 2
    assert catalogue.delete(["b", "nothing", "b"]) == 1
    assert catalogue.delete(["b"]) == 0
    assert [row.id for row in catalogue.get(["a", "b"])] == ["a"] and catalogue.verify() == []


def test_compaction_frees_what_is_gone_and_keeps_the_rest(catalogue: Catalogue) -> None:
    catalogue.upsert([item(str(i), i) for i in range(20)])
    catalogue.upsert([item("3", 100)])
    catalogue.delete([str(i) for i in range(0, 20, 2)])
    before = {row.id: row for row in catalogue.get(list(catalogue.digests()))}
    view = ViewKeeper(catalogue).current()  # a reader from before goes on
    assert catalogue.compact() == 11 and catalogue.state.next_slot == 10
    assert catalogue.verify() == [] and len(list((catalogue.folder / "vectors").iterdir())) == 2
    rows = catalogue.get(list(before))
    assert rows == [before[row.id]._replace(sequence=row.sequence) for row in rows]
    assert all(catalogue.picture(row.id) is not None for row in rows)
    old = view.vectors["image"].gather(view.slots_of(np.array([row.number for row in rows])))
    assert (stored_vectors(catalogue, rows, "image") == old).all()


def test_a_changed_byte_is_found(catalogue: Catalogue) -> None:
    catalogue.upsert([item("a", 1), item("b", 2)])
    path = catalogue.vectors("image").path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = catalogue.verify()
    assert "row 'b': its image vector has changed on the disk" in problem
    path.write_bytes(content[:-1])
    assert any("holds 1 of 2 vectors" in problem for problem in catalogue.verify())


def test_a_view_follows_and_is_kept(catalogue: Catalogue) -> None:
    keeper = ViewKeeper(catalogue)
    catalogue.upsert([item("a", 1), item("b", 2, vectors={"text": np.ones(DIM)})])
    first = keeper.current()
    assert len(first) == 2 and first.has["image"].tolist() == [True, False]
    keeper.save()
    catalogue.upsert([item("a", 3, attributes={"colour": "Blue"}), item("c", 4)])
    catalogue.delete(["b"])
    second, fresh = keeper.current(), ViewKeeper(Catalogue(catalogue.folder)).current()
    assert len(first) == 2  # as it was
    for view in (second, fresh):
        assert view.live.tolist() == [False, False, True, True]
        assert view.live_at(first.state.sequence).tolist() == [True, True, False, False]
        assert view.columns.of["colour"].vocabulary.texts() == ["Red", "Blue"]
    (catalogue.folder / "cache" / "view.npz").write_bytes(b"not a zip file")
    assert len(ViewKeeper(catalogue).current()) == 2
    catalogue.compact()
    assert keeper.newest().live.tolist() == [True, True]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"vectors": {"image": np.ones(DIM + 1)}}, "does not fit"),
        ({"vectors": {"sound": np.ones(DIM)}}, "does not fit"),
        ({"vectors": {"image": np.full(DIM, np.nan)}}, "finite"),
        ({"attributes": {"brand": "x"}}, "no attribute 'brand'; known: colour, price"),
        ({"attributes": {"price": "cheap"}}, "'price' is 'cheap', which is no number"),
        ({"attributes": {"price": "7"}}, "'price' is '7', which is no number"),
        ({"attributes": {"price": float("nan")}}, "item 'bad': attribute 'price' is nan; give a finite number"),
        ({"attributes": {"colour": float("inf")}}, "'colour' is inf"),
        ({"attributes": {"price": 10**400}}, "'price' is 1000"),
        ({"vectors": {"image": np.full(DIM, 1e30)}}, "finite"),
    ],
)
def test_bad_items_are_refused_whole(catalogue: Catalogue, bad: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        catalogue.upsert([item("good"), item("bad", **bad)])
    assert len(catalogue) == 0 and catalogue.state.next_slot == 0


def test_it_is_opened_and_verified_without_torch(catalogue: Catalogue) -> None:
    """Which takes several times as long to load as a catalogue's own rooms."""
    catalogue.upsert([item("a", 1)])
    script = textwrap.dedent("""
        import sys
        from dualtower.retrieval.store import open_store
        store = open_store(sys.argv[1])
        print([row.id for row in store.get(["a"])], store.catalogue.verify(), store.catalogue.delete(["a"]))
        print([name for name in ("torch", "transformers", "timm", "datasets", "pandas") if name in sys.modules])
    """)
    words = [sys.executable, "-c", script, str(catalogue.folder)]
    assert subprocess.run(words, capture_output=True, text=True, timeout=60).stdout == "['a'] [] 1\n[]\n"


def test_bad_folders_are_named(tmp_path: Path, catalogue: Catalogue) -> None:
    with pytest.raises(CatalogueError, match="no catalogue in"):
        Catalogue(tmp_path / "nothing")
    with pytest.raises(CatalogueError, match="is not empty"):
        Catalogue.create(catalogue.folder, info())
    with pytest.raises(DataError, match="same id"):
        catalogue.upsert([item("a"), item("a")])
    with pytest.raises(ConfigError, match="no 'sound' vectors"):
        catalogue.vectors("sound")
    (catalogue.folder / "catalogue.json").write_text('{"model": "m", "fingerprint": "f", "dim": 8, "format": 99}')
    with pytest.raises(CatalogueError, match="format 99"):
        Catalogue(catalogue.folder)


def test_writers_take_turns(catalogue: Catalogue) -> None:
    def write(name: int) -> None:
        own = Catalogue(catalogue.folder)
        for i in range(10):
            own.upsert([item(f"{name}-{i}", i)])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(catalogue) == 40 and catalogue.state.next_slot == 40 and catalogue.verify() == []


@pytest.mark.slow
def test_killed_at_any_moment_nothing_accepted_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of the benchmark's two hundred kills."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import crash

    during, searches = crash.run(tmp_path / "crash", kills=5, longest=0.5)
    assert during.total() == 5 and searches >= 2


def test_a_full_disk_refuses_and_keeps_what_was_accepted(catalogue: Catalogue) -> None:
    """A real limit: this process may not write files of more than some size."""
    script = textwrap.dedent(f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_catalogue import item
        from dualtower.errors import CatalogueError
        from dualtower.retrieval.catalogue import Catalogue
        catalogue = Catalogue({str(catalogue.folder)!r})
        catalogue.upsert([item(str(i), i) for i in range(50)])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
        try:
            catalogue.upsert([item(str(i), i, title="new") for i in range(100)])
        except CatalogueError as error:
            assert "What was accepted before is intact" in str(error), error
            sys.exit(7)
    """)
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7
    assert len(catalogue) == 50 and catalogue.verify() == []
    assert {row.title for row in catalogue.get(["1"])} == {"title 1"}
    catalogue.upsert([item("51", 51)])
    assert time.time() and len(catalogue) == 51


FORMAT_1 = """
CREATE TABLE state (generation INTEGER NOT NULL, next_slot INTEGER NOT NULL, sequence INTEGER NOT NULL);
INSERT INTO state VALUES (2, 4, 5);
CREATE TABLE rows (
    id TEXT NOT NULL UNIQUE, slot INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, created INTEGER NOT NULL,
    product_id TEXT NOT NULL, title TEXT NOT NULL, attributes TEXT NOT NULL, checksums TEXT NOT NULL,
    digest TEXT NOT NULL
);
CREATE INDEX rows_by_sequence ON rows (sequence);
CREATE TABLE gone (slot INTEGER PRIMARY KEY, id TEXT NOT NULL, sequence INTEGER NOT NULL);
CREATE INDEX gone_by_sequence ON gone (sequence);
CREATE TABLE pictures (slot INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
INSERT INTO gone VALUES (1, 'c', 4);
INSERT INTO gone VALUES (2, 'gone', 5);
"""


def test_a_catalogue_of_the_first_format_becomes_one_of_this(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    (folder / "vectors").mkdir(parents=True)
    (folder / "cache").mkdir()
    (folder / "catalogue.json").write_text(json.dumps({**to_dict(info()), "format": 1}))
    items = [item("a", 1), item("x", 9), item("y", 8), item("c", 3)]
    for kind in ("image", "text"):
        vectors = np.stack([made.vectors[kind] for made in items])
        (folder / "vectors" / f"2-{kind}.f16").write_bytes(vectors.tobytes())
    connection = sqlite3.connect(folder / "rows.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(FORMAT_1)
    for slot in (0, 3):
        made = items[slot]
        crcs = json.dumps([crcs_of(vector[None])[0] for vector in made.vectors.values()])
        about = (made.product_id, made.title, json.dumps(made.attributes), crcs, "digest")
        connection.execute("INSERT INTO rows VALUES (?, ?, 1, 1, ?, ?, ?, ?, ?)", (made.id, slot, *about))
        connection.execute("INSERT INTO pictures VALUES (?, ?)", (slot, made.picture))
    connection.commit()
    connection.close()
    catalogue = Catalogue(folder)
    assert catalogue.verify() == [] and catalogue.digests() == {"a": "digest", "c": "digest"}
    assert (stored_vectors(catalogue, catalogue.get(["c"]), "text")[0] == items[3].vectors["text"]).all()
    catalogue.upsert([item("d", 4)])
    assert catalogue.compact() == 2 and len(catalogue) == 3
    again = Catalogue(folder)
    assert again.verify() == [] and again.picture("c") == b"picture c" and again.info.format == 2
    assert (stored_vectors(again, again.get(["c"]), "text")[0] == items[3].vectors["text"]).all()


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
    catalogue = Catalogue.create(tmp_path / "shop", CatalogueInfo("m", "f", 4))
    together = threading.Barrier(3)

    def read() -> None:
        for _ in range(50):
            assert len(catalogue) == 0
        together.wait()

    for _ in range(5):
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 1 <= len(catalogue._database._idle) <= 3


def test_attributes_change_and_all_else_stays(catalogue: Catalogue) -> None:
    catalogue.upsert([item("a", 1), item("b", 2)])
    before = catalogue.get(["a"])[0]
    size = catalogue.vectors("image").path.stat().st_size
    assert catalogue.update_attributes({"a": {"price": 9.99}, "b": {"colour": None}}) == 2
    after = catalogue.get(["a"])[0]
    assert after.attributes == {"colour": "Red", "price": 9.99}
    assert after._replace(attributes={}, updated=None) == before._replace(attributes={})
    assert catalogue.picture("a") == b"picture a" and catalogue.vectors("image").path.stat().st_size == size
    assert catalogue.get(["b"])[0].attributes == {"colour": None, "price": 2.0}
    assert catalogue.verify() == [] and len(catalogue) == 2
    assert catalogue.digests()["a"] == ""  # what it was made from is no longer all that it holds
    state = catalogue.state
    assert catalogue.update_attributes({"a": {"price": 9.99}}) == 0 and catalogue.state == state


def test_attributes_of_unknown_rows_change_nothing(catalogue: Catalogue) -> None:
    catalogue.upsert([item("a", 1)])
    with pytest.raises(UnknownRow, match="no row 'nobody'") as caught:
        catalogue.update_attributes({"a": {"price": 5}, "nobody": {"price": 5}})
    assert caught.value.ids == ["nobody"]
    for bad, message in (
        ({"brand": "x"}, "no attribute 'brand'; known: colour, price"),
        ({"price": "cheap"}, "'price' is 'cheap', which is no number"),
        ({"title": "x"}, "no attribute 'title'"),
    ):
        with pytest.raises(DataError, match=message):
            catalogue.update_attributes({"a": bad})
    assert catalogue.get(["a"])[0].attributes["price"] == 1.0


def test_attributes_that_vectors_are_made_from_ask_for_the_whole_row(tmp_path: Path) -> None:
    fused = Catalogue.create(tmp_path / "fused", info(embedded_attributes=("colour",)))
    fused.upsert([item("a", 1)])
    with pytest.raises(DataError, match="product vectors of this catalogue are made from 'colour'"):
        fused.update_attributes({"a": {"colour": "Blue"}})
    assert fused.update_attributes({"a": {"price": 2.5}}) == 1


def test_a_view_follows_changed_attributes(catalogue: Catalogue) -> None:
    """Beside other changes, from the cache, and over a compaction; and the row was born when it was born."""
    keeper = ViewKeeper(catalogue)
    catalogue.upsert([item("a", 1), item("b", 2), item("c", 3)])
    first = keeper.current()
    keeper.save()
    catalogue.update_attributes({"b": {"price": 50, "colour": "Mauve"}})
    catalogue.upsert([item("a", 4)])
    catalogue.update_attributes({"a": {"price": None}})
    kinds = kinds_of(catalogue.info)
    prices = parse_filter("price > 2.5", kinds), parse_filter("colour = 'Mauve'", kinds)
    for view in (keeper.current(), ViewKeeper(Catalogue(catalogue.folder)).current()):
        assert [(view.live & view.columns.satisfies(part)).tolist() for part in prices] == [
            [False, True, True, False],
            [False, True, False, False],
        ]
        assert view.live_at(first.state.sequence).tolist() == [True, True, True, False]
    assert first.columns.satisfies(prices[0]).tolist() == [False, False, True]  # as it was
    catalogue.compact()
    view = keeper.newest()
    assert (view.live & view.columns.satisfies(prices[0])).tolist() == [True, True, False]
