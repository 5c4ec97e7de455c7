"""A Milvus server: addresses, tokens, TLS, databases; processes that die; requests that fail alone."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_catalog import DIM, info
from test_search import some_item

from dualtower.errors import CatalogError, ConfigError, CursorError, DataError, FilterError
from dualtower.search.filters import matches, parse_filter
from dualtower.search.milvus import search as search_room
from dualtower.search.milvus import store as store_room
from dualtower.search.milvus.address import Address, parse_address, shown_address
from dualtower.search.milvus.filters import literal
from dualtower.search.queries import Page, Query
from dualtower.search.records import EmbeddedItem
from dualtower.search.store import Store, create_store, open_store, store_exists

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import milvus_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus_server.running(tmp_path_factory.mktemp("milvus") / "data") as port:
        yield f"milvus://127.0.0.1:{port}"


@pytest.fixture
def store(server: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    made = create_store(f"{server}/{request.node.originalname}"[:150], info())
    yield made
    made.close()


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DUALTOWER_MILVUS_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    plain, secret = parse_address("milvus://host/shop"), parse_address("milvus://me:p%40ss@host:1/db/shop?secure=1")
    assert plain == Address("http://host:19530", "shop", shown="milvus://host/shop")
    assert secret == Address("https://host:1", "shop", "db", "me:p@ss", "milvus://host:1/db/shop?secure=1")
    assert "p@ss" not in repr(secret) and shown_address("milvus://me:p@ss@host/shop") == "milvus://host/shop"
    assert parse_address("milvus:shop.db/shop") == Address(
        str(tmp_path / "shop.db"), "shop", shown="milvus:shop.db/shop"
    )
    monkeypatch.setenv("DUALTOWER_MILVUS_TOKEN", "key")
    assert parse_address("milvus://host/shop").token == "key"
    assert parse_address("milvus://me:x@host/shop").token == "me:x"
    for bad in ("milvus:shop", "milvus://host", "milvus://host/a/b/c", "milvus://host/sh-op", "milvus:///shop",
                "milvus://host/shop?tls=1", "milvus://host/shop?secure=yes",
                "milvus://a:secret@host:port/shop"):  # fmt: skip
        with pytest.raises(ConfigError, match="milvus:") as caught:
            parse_address(bad)
        assert "secret" not in str(caught.value)


def test_a_question_fails_alone(store: Store) -> None:
    dice = random.Random(0)
    catalog_items = {str(i): some_item(dice, str(i)) for i in range(40)}
    odd = {"esc": "\x1b[0m", "nul": "a\x00b", "line": "a\u2028b\r\n", "quote": 'it\'s "so" \\'}
    catalog_items |= {
        k: replace(catalog_items["1"], id=k, attributes={"color": text, "price": None}) for k, text in odd.items()
    }
    store.upsert(list(catalog_items.values()))
    asked: dict[str, type[Exception] | None] = {
        "": None,
        "price < 1e999": FilterError,
        "price in (1, -1e400)": FilterError,
        "color = '\ud800'": FilterError,
        "not " * 300 + "price > 5": None,
        "not " * 301 + "price > 5": None,
        "not (" * 30 + "price > 5" + ")" * 30: None,
        "color = 'Rad'": None,
        "colr = 'Red'": FilterError,
        **{f"color = '{text}'": None for text in ("\x1b[0m", "a\x00b", "a\u2028b\r\n", 'it\\\'s "so" \\\\')},
        **{f"color in ('Red', '{text}')": None for text in ("\x1b[0m", "a\x00b", "\x7f")},
    }
    query = Query(np.ones(DIM, np.float32), "text", limit=100, group_by_product=False)
    found = store.search_many([*(replace(query, where=where) for where in asked), replace(query, cursor="xyz")])
    assert isinstance(found.pop(), CursorError)
    kinds: Any = {"color": "text", "price": "number"}
    for (where, error), page in zip(asked.items(), found, strict=True):
        if error is not None:
            assert isinstance(page, error), (where, page)
            continue
        part = parse_filter(where, kinds) if where else None
        wanted = {i for i, item in catalog_items.items() if part is None or matches(part, item.attributes)}
        assert isinstance(page, Page) and {hit.id for hit in page.hits} == wanted, (where[:40], page)


def test_ids_are_texts_whatever_they_hold(store: Store) -> None:
    """The client puts ids between quotes as they are: an id with a quote would end the list and begin a condition."""
    ids = ["plain", "it's", 'a"b', "a\\", "x'] or id != ['y", 'x"] or id != ["y', "a\x00b", "é\n"]
    vectors = {"text": np.ones(DIM)}
    store.upsert([EmbeddedItem(row_id, "p", row_id, {}, vectors, b"image of " + row_id.encode()) for row_id in ids[:4]])
    assert store.get(ids[4:]) == [] and store.delete([*ids[4:], "\ud800"]) == 0 and store.image("\ud800") is None
    assert [row.id for row in store.get(ids)] == ids[:4]
    store.upsert([EmbeddedItem(row_id, "p", row_id, {}, vectors, b"image of " + row_id.encode()) for row_id in ids[4:]])
    for row_id in ids:
        assert store.image(row_id) == b"image of " + row_id.encode()
        assert store.delete([row_id]) == 1 and store.image(row_id) is None
    assert len(store) == 0
    with pytest.raises(DataError, match="half a character"):
        store.upsert([EmbeddedItem("a", "p", "\ud800", {}, vectors)])
    with pytest.raises(DataError, match="title has more than"):
        store.upsert([EmbeddedItem("a", "p", "é" * 40_000, {}, vectors)])
    with pytest.raises(FilterError):
        literal("\udfff")


def test_images_lie_apart_and_whole(server: str, store: Store) -> None:
    dice = random.Random(1)
    photos = {str(i): dice.randbytes(size) for i, size in enumerate([1, 44_999, 45_000, 45_001, 300_000])}
    catalog_items = [EmbeddedItem(i, i, "", {}, {"text": np.ones(DIM)}, content) for i, content in photos.items()]
    store.upsert(catalog_items)
    assert {i: store.image(i) for i in photos} == photos
    assert isinstance(store, store_room.MilvusStore)
    client, name = store._client, store._name
    assert not {f["name"] for f in client.describe_collection(name)["fields"]} & {"parts", "content"}
    store.upsert([replace(catalog_items[4], image=b"small"), replace(catalog_items[3], image=None)])
    assert store.image("4") == b"small" and store.image("3") is None
    store.delete(["4", "2"])
    assert store.image("2") is None
    assert sorted(row["id"] for row in client.query(f"{name}_images", filter="", output_fields=["id"], limit=99)) == [
        "0:0",
        "0:1",
    ]


def test_alike_questions_go_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(store, store_room.MilvusStore)
    dice = random.Random(2)
    catalog_items = {str(i): some_item(dice, str(i)) for i in range(60)}
    store.upsert(list(catalog_items.values()))
    calls: list[dict[str, Any]] = []
    search = store._client.search
    monkeypatch.setattr(store._client, "search", lambda *a, **k: calls.append(k) or search(*a, **k))
    queries = [
        Query(np.eye(DIM, dtype=np.float32)[i % DIM], "text", where, limit=5, group_by_product=False)
        for i in range(16)
        for where in ("", "color = 'Red'")
    ]
    together = store.search_many(queries)
    assert sorted(len(call["data"]) for call in calls if call["limit"] == 14) == [16, 16] and len(calls) < 10
    assert {call["consistency_level"] for call in calls} == {"Session"}  # it has just written
    assert [page.to_dict() for page in together if isinstance(page, Page)] == [
        store.search(query).to_dict() for query in queries
    ]
    calls.clear()
    store._written = -1e9
    store.search(queries[0])
    assert {call["consistency_level"] for call in calls} == {"Bounded"}
    monkeypatch.setattr(search_room, "MAX_BYTES", 5 * 14 * (4 * DIM + 200))
    calls.clear()
    assert len(store.search_many(queries)) == 32 and max(len(call["data"]) for call in calls) == 5


def test_the_end_of_paging_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_room, "MAX_AT_ONCE", 25)
    vectors = np.random.default_rng(0).normal(size=(60, DIM))
    store.upsert([EmbeddedItem(str(i), str(i), "", {}, {"text": vector}) for i, vector in enumerate(vectors)])
    query, seen = Query(np.ones(DIM, np.float32), "text", limit=10), set()
    page = store.search(query)
    for _ in range(2):
        seen |= {hit.id for hit in page.hits}
        assert page.cursor is not None
        page = store.search(replace(query, vector=None, cursor=page.cursor))
    seen |= {hit.id for hit in page.hits}
    assert len(seen) == 25
    with pytest.raises(ConfigError, match=r"at most 25 rows.*narrow the search with a filter"):
        store.search(replace(query, vector=None, cursor=page.cursor))


def test_counts_say_whether_they_are_of_all_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"text": np.ones(DIM)}
    store.upsert([EmbeddedItem(str(i), str(i), "", {"color": "Red", "price": float(i)}, vectors) for i in range(40)])
    for most, count in ((39, 39), (40, 40), (100, 40)):
        monkeypatch.setattr(store_room, "COUNTED", most)
        found = store.counts()["color"]
        assert (found.values, found.approximate) == ((("Red", count),), most < 40)


_DIES = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from pymilvus import MilvusClient
    from test_catalog import info
    from dualtower.search.store import create_store

    left = {calls}
    def dying(name, call):
        def counted(self, *args, **more):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(self, *args, **more)
        setattr(MilvusClient, name, counted)
    calls = "create_collection create_index load_collection has_collection list_indexes drop_collection"
    for name in calls.split():
        dying(name, getattr(MilvusClient, name))
    create_store({uri!r}, info())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_between_any_two_calls_it_opens_or_is_made(server: str) -> None:
    died = 0
    for calls in range(0, 20):
        uri = f"{server}/killed{calls}"
        script = textwrap.dedent(_DIES.format(tests=str(Path(__file__).parent), calls=calls, uri=uri))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        died += 1
        store = open_store(uri) if store_exists(uri) else create_store(uri, info())
        store.upsert([EmbeddedItem("1", "p", "t", {"color": "Red"}, {"text": np.ones(DIM)}, b"image")])
        assert [hit.id for hit in store.search(Query(np.ones(DIM, np.float32), "text")).hits] == ["1"]
        assert store.image("1") == b"image" and open_store(uri).info == info()
        store.close()
    assert died >= 8


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    files = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command = ["openssl", *words.split(), "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


_USES = """
    import sys
    sys.path.insert(0, {tests!r})
    import numpy as np
    from test_catalog import info
    from dualtower.errors import DualTowerError
    from dualtower.search.records import EmbeddedItem
    from dualtower.search.store import create_store, open_store

    try:
        create_store(sys.argv[1], info()).upsert([EmbeddedItem("1", "p", "t", {{}}, {{"text": np.ones(8)}})])
        print(len(open_store(sys.argv[1])))
    except DualTowerError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_token_tls_and_database(tmp_path: Path) -> None:
    files, token = certificate(tmp_path), "me:s3cr:et"
    script = textwrap.dedent(_USES.format(tests=str(Path(__file__).parent)))

    def use(uri: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, uri],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(files[0]), **environment},
        )
        assert "s3cr" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done.stdout.strip()

    options = ("--token", token, "--certificate", str(files[0]), "--key", str(files[1]))
    with milvus_server.running(tmp_path / "data", *options) as port:
        assert use(f"milvus://127.0.0.1:{port}/one?secure=1", DUALTOWER_MILVUS_TOKEN=token) == "1"
        assert use(f"milvus://me:s3cr%3Aet@127.0.0.1:{port}/two?secure=1") == "1"
        refused = use(f"milvus://you:s3cret@127.0.0.1:{port}/three?secure=1")
        assert f"cannot connect to Milvus at milvus://127.0.0.1:{port}/three" in refused, refused
        assert "cannot connect" in use(f"milvus://127.0.0.1:{port}/one", DUALTOWER_MILVUS_TOKEN=token)  # not over TLS


def test_databases_are_apart(server: str) -> None:
    import pymilvus

    pymilvus.MilvusClient(server.replace("milvus", "http"), timeout=60).create_database("winter")
    create_store(f"{server}/winter/shop", info()).close()
    assert store_exists(f"{server}/winter/shop") and not store_exists(f"{server}/shop")
    with pytest.raises(CatalogError, match="no collection 'shop'"):
        open_store(f"{server}/shop")


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(CatalogError, match=r"cannot connect to Milvus at milvus://127\.0\.0\.1:1/shop") as caught:
        open_store("milvus://me:s3cret@127.0.0.1:1/shop")
    assert "s3cret" not in str(caught.value)
