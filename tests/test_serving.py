"""The service as a real process on loopback: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import factories
import httpx
import pytest

from dualtower import Item
from dualtower.models.dual_tower import DualTower
from dualtower.search.engine import open_engine
from dualtower.search.ingest.embed import index_products, open_or_create
from dualtower.search.local.store import LocalStore
from dualtower.serving.app import create_app
from dualtower.serving.batching import Background, Batcher, QueueFull

TOKEN = "a token that nobody guesses"
WRITER = {"authorization": f"Bearer {TOKEN}"}
COLORS = ("red", "blue", "green")


def items(number: int = 60) -> list[Item]:
    """Two rows per product; every third row has no price."""
    return [
        Item(
            f"r{i}",
            f"p{i // 2}",
            (factories.TITLES[i % len(factories.TITLES)],),
            factories.png(factories.photo(i)),
            {"color": COLORS[i % 3], "price": None if i % 3 == 0 else float(i)},
        )
        for i in range(number)
    ]


def make_shop(folder: Path, number: int = 60) -> Path:
    """A model and a catalog of it."""
    factories.spread_model().save_pretrained(folder / "model")
    model = DualTower.from_pretrained(folder / "model")
    kinds = {"color": "text", "price": "number"}
    store = open_or_create(folder / "shop", model, name=str(folder / "model"), attributes=kinds, card="tiny")
    index_products(store, model, items(number))
    store.close()
    return folder / "shop"


@dataclass
class Server:
    """A running service."""

    url: str
    process: subprocess.Popen
    log: list[str]
    reader: threading.Thread

    def client(self, **more) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **more)


def start(shop: Path, *more: str) -> Server:
    """Start a service on a free port, and wait until it listens; its log begins with that line."""
    command = [sys.executable, "-c", "from dualtower.cli import main; main()", "serve", str(shop), "--port", "0", *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: list[str] = []
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"on (http://\S+)", line):
            del log[:-1]
            reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
            reader.start()
            return Server(found[1], process, log, reader)
    raise AssertionError("".join(log))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def server(shop: Path) -> Iterator[Server]:
    token = shop.parent / "token"
    token.write_text(TOKEN)
    running = start(shop, "--token-file", str(token))
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=30) in (0, -signal.SIGTERM)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


def test_search_by_text_image_and_both(client: httpx.Client, shop: Path) -> None:
    photo = factories.png(factories.photo(7))
    found = client.post("/search", json={"image": base64.b64encode(photo).decode(), "limit": 3})
    assert found.status_code == 200 and len(found.json()["hits"]) == 3
    best = found.json()["hits"][0]
    assert best["id"] == "r7" and best["score"] == pytest.approx(1, abs=2e-3)
    assert best["row"] == {"title": factories.TITLES[7], "attributes": {"color": "blue", "price": 7.0}}
    form = client.post("/search", data={"limit": "3"}, files={"image": ("photo.png", photo, "image/png")})
    assert form.json()["hits"] == found.json()["hits"]
    both = client.post(
        "/search", json={"text": "red mug", "negative_texts": ["dress"], "image": base64.b64encode(photo).decode()}
    )
    assert len({hit["product_id"] for hit in both.json()["hits"]}) == 10
    every = client.post(
        "/search", json={"text": "red mug", "where": "price < 10", "limit": 100, "group_by_product": False}
    ).json()
    assert {hit["id"] for hit in every["hits"]} == {"r1", "r2", "r4", "r5", "r7", "r8"} and every["cursor"] is None


def test_pages_follow_each_other(client: httpx.Client) -> None:
    whole = client.post("/search", json={"text": "navy blue mug", "limit": 30}).json()["hits"]
    seen, cursor = [], None
    while True:
        body = (
            {"text": "navy blue mug", "limit": 7, "cursor": cursor} if cursor else {"text": "navy blue mug", "limit": 7}
        )
        page = client.post("/search", json=body).json()
        seen, cursor = seen + page["hits"], page["cursor"]
        if cursor is None:
            break
    assert seen == whole


def test_items(client: httpx.Client) -> None:
    assert client.get("/items/r3").json()["row"]["title"] == factories.TITLES[3]
    image = client.get("/items/r3/image")
    assert image.headers["content-type"] == "image/png" and image.content == factories.png(factories.photo(3))
    alike = client.get("/items/r3/similar", params={"limit": 5}).json()["hits"]
    assert len(alike) == 5 and "p1" not in {hit["product_id"] for hit in alike}
    why = client.get("/items/r3/explain", params={"text": "red dress"}).json()
    assert [word["word"] for word in why["words"]] == ["red", "dress"] and why["image"].startswith("data:image/png")
    for path in ("/items/none", "/items/none/image", "/items/none/similar", "/items/none/explain?text=x"):
        assert client.get(path).status_code == 404, path
    about = client.get("/about").json()
    assert about["rows"] >= 60 and about["attributes"]["price"]["type"] == "number"
    assert {value["value"] for value in about["attributes"]["color"]["values"]} == set(COLORS)


def test_writes_need_the_token_and_are_found_at_once(client: httpx.Client) -> None:
    photo = factories.png(factories.photo(1000))
    item = {"id": "new/1", "title": "Fila white striped dress", "attributes": {"color": "red"}}
    item["image"] = base64.b64encode(photo).decode()
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert client.put("/items", json=[item], headers=headers).status_code == 401
        assert client.delete("/items/r1", headers=headers).status_code == 401
    assert client.put("/items", json=[item], headers=WRITER).json() == {"written": 1}
    found = client.post("/search", json={"image": item["image"], "limit": 1}).json()["hits"]
    assert found[0]["id"] == "new/1"
    assert client.get("/items/new/1").json()["row"]["attributes"] == {"color": "red"}
    assert client.delete("/items/new/1", headers=WRITER).json() == {"removed": 1}
    assert client.delete("/items/new/1", headers=WRITER).status_code == 404
    bad = client.put("/items", json=[{**item, "attributes": {"brand": "x"}}], headers=WRITER)
    assert bad.status_code == 422 and "no attribute 'brand'" in bad.json()["detail"]
    assert client.get("/items/new/1").status_code == 404


def test_half_a_row_replaces_no_whole_one(client: httpx.Client) -> None:
    before, photo = client.get("/items/r5").json(), client.get("/items/r5/image").content
    image = base64.b64encode(photo).decode()
    for given, missing in [
        ({"attributes": {"price": 9.99}}, "title and image are missing"),
        ({"title": "new", "product_id": "p2"}, "image is missing"),
        ({"image": image, "product_id": "p2"}, "title is missing"),
        ({"title": "new", "image": image}, "product_id is missing, the row's is 'p2'"),
    ]:
        answer = client.put("/items", json=[{"id": "other", "title": "x"}, {"id": "r5", **given}], headers=WRITER)
        assert answer.status_code == 422 and f"item 'r5': {missing}" in answer.json()["detail"], answer.text
        assert "PATCH /items/r5" in answer.json()["detail"]
    assert client.get("/items/r5").json() == before and client.get("/items/r5/image").content == photo
    assert client.get("/items/other").status_code == 404


def test_attributes_change_alone(client: httpx.Client, shop: Path) -> None:
    photo = client.get("/items/r8/image").content
    question = {"image": base64.b64encode(photo).decode(), "where": "price = 1234.5"}
    assert client.post("/search", json=question).json()["hits"] == []
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert client.patch("/items/r8", json={"attributes": {"price": 1}}, headers=headers).status_code == 401
    before = client.get("/items/r8").json()
    changed = client.patch("/items/r8", json={"attributes": {"price": 1234.5}}, headers=WRITER)
    before["row"]["attributes"]["price"] = 1234.5
    assert changed.status_code == 200 and changed.json() == before == client.get("/items/r8").json()
    (hit,) = client.post("/search", json=question).json()["hits"]
    assert hit["id"] == "r8" and hit["score"] == pytest.approx(1, abs=2e-3)
    assert client.get("/items/r8/image").content == photo
    assert client.patch("/items/r8", json={"attributes": {"price": None}}, headers=WRITER).status_code == 200
    assert client.get("/items/r8").json()["row"]["attributes"]["price"] is None
    typed = client.patch("/items/r8", json={"attributes": {"price": "8", "color": 5}}, headers=WRITER).json()
    assert typed["row"]["attributes"] == {"price": 8.0, "color": "5"}  # as PUT takes them
    for path, given, status, message in [
        ("/items/nobody", {"attributes": {"price": 1}}, 404, "no such row"),
        ("/items/r8", {"attributes": {"prize": 1}}, 422, "Did you mean 'price'?"),
        ("/items/r8", {"attributes": {"price": "cheap"}}, 422, "attribute 'price' is 'cheap', which is no number"),
        ("/items/r8", {"attributes": {}}, 422, "attributes"),
        ("/items/r8", {"title": "new"}, 422, "title cannot change alone; send the whole row with PUT /items"),
    ]:
        answer = client.patch(path, json=given, headers=WRITER)
        assert answer.status_code == status and message in answer.json()["detail"], answer.text
    assert LocalStore(shop).catalog.verify() == []
    assert "patch" in client.get("/openapi.json").json()["paths"]["/items/{row_id}"]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "1" * 400])
def test_numbers_that_are_none_are_refused(client: httpx.Client, number: str) -> None:
    headers = {**WRITER, "content-type": "application/json"}
    for name in ("price", "color"):
        item = f'[{{"id": "r4", "title": "x", "attributes": {{"{name}": {number}}}}}]'
        change = f'{{"attributes": {{"{name}": {number}}}}}'
        for method, path, body in (("PUT", "/items", item), ("PATCH", "/items/r4", change)):
            answer = client.request(method, path, content=body, headers=headers)
            assert answer.status_code == 422 and name in answer.json()["detail"], answer.text
    assert client.get("/items/r4").json()["row"]["attributes"]["price"] == 4.0


def test_a_damaged_index_heals_beside_the_answers(shop: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shop, tmp_path / "shop")
    store = LocalStore(folder)
    store.rebuild()
    (path,) = (folder / "cache").glob("*-image-*.faiss")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert store.is_stale(thorough=True) and not store.is_stale()
    running = start(folder)
    try:
        with running.client() as client:
            assert len(client.post("/search", json={"text": "red mug"}).json()["hits"]) == 10
        for _ in range(300):
            if not LocalStore(folder).is_stale(thorough=True):
                break
            time.sleep(0.1)
        assert not LocalStore(folder).is_stale(thorough=True)
        assert "it has changed on the disk" in "".join(running.log)
    finally:
        running.process.kill()


def test_without_a_token_nobody_writes(shop: Path) -> None:
    running = start(shop)
    try:
        with running.client() as client:
            answer = client.delete("/items/r1", headers=WRITER)
            assert answer.status_code == 403 and "read-only" in answer.json()["detail"]
    finally:
        running.process.kill()


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"json": {}}, 422, "nothing to search with"),
        ({"json": {"text": "a", "where": "size = 3"}}, 422, "no attribute 'size'; known: color, price"),
        ({"json": {"text": "a", "where": "color = "}}, 422, "the filter ends too early"),
        ({"json": {"text": "a", "limit": 101}}, 422, "limit: Input should be less than or equal to 100"),
        ({"json": {"text": "a", "cursor": "xyz"}}, 422, "the cursor is broken"),
        ({"json": {"text": "a", "txet": "b"}}, 422, "txet: Extra inputs are not permitted"),
        ({"json": {"text": "a" * 2001}}, 422, "text: String should have at most 2000 characters"),
        ({"json": {"image": base64.b64encode(b"no image").decode()}}, 422, "not an image"),
        ({"json": {"text": "a", "image_weight": 1e300}}, 422, "image_weight"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "Invalid JSON"),
        ({"content": b"text=a"}, 415, "application/json or multipart"),
        ({"content": b"x" * 17_000_000}, 413, "larger than 16,000,000 bytes"),
        ({"content": iter([b"x" * 1_000_000] * 17), "headers": {"content-type": "application/json"}}, 413, "larger"),
    ],
)
def test_bad_questions_are_told_what_is_wrong(client: httpx.Client, request_: dict, status: int, words: str) -> None:
    answer = client.post("/search", **request_)
    assert answer.status_code == status and words in answer.json()["detail"]
    assert "/" not in answer.json()["detail"].replace("application/json or multipart/form-data", "")  # no paths


def test_hostile_images_are_refused(client: httpx.Client) -> None:
    import io

    from PIL import Image

    Image.new("1", (12_000, 12_000)).save(buffer := io.BytesIO(), "PNG")  # small on the wire, 432 MB as RGB
    answer = client.post("/search", files={"image": ("bomb.png", buffer.getvalue(), "image/png")})
    assert answer.status_code == 422 and "pixels" in answer.json()["detail"]
    cut = factories.png(factories.photo(1))[:300]
    assert client.post("/search", files={"image": ("cut.png", cut, "image/png")}).status_code == 422
    assert client.get("/healthz").json()["status"] == "ok"


def test_every_answer_has_safe_headers_and_only_loopback_names_are_served(client: httpx.Client) -> None:
    for path in ("/", "/page/search.js", "/items/r1/image", "/items/none", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
    for path in ("/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/..%2f..%2fmodel.py"):
        assert client.get(path).status_code == 404
    assert client.get("/healthz", headers={"host": "shop.example"}).status_code == 421


def test_concurrent_questions_get_their_own_answers(client: httpx.Client, server: Server) -> None:
    titles = factories.TITLES * 4
    alone = {title: client.post("/search", json={"text": title, "limit": 3}).json() for title in factories.TITLES}

    def ask(title: str) -> list[str]:
        with server.client() as own:
            return [hit["id"] for hit in own.post("/search", json={"text": title, "limit": 3}).json()["hits"]]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, titles))
    for title, answer in zip(titles, answers, strict=True):
        assert answer == [hit["id"] for hit in alone[title]["hits"]]
    figures = client.get("/metrics").text
    assert 'dualtower_requests_total{route="/search",status="200"}' in figures and "dualtower_batch_size_sum" in figures


def test_reload_and_a_full_queue(shop: Path, server: Server, client: httpx.Client) -> None:
    failures: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with server.client() as own:
            while not stop.is_set():
                status = own.post("/search", json={"text": "red mug"}).status_code
                failures.extend([status] if status != 200 else [])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert client.post("/reload").status_code == 401
    for _ in range(4):
        assert client.post("/reload", headers=WRITER).json() == {"rows": len(LocalStore(shop))}
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_hangup_opens_the_catalog_anew_and_keeps_the_old_one_where_that_fails(shop: Path, tmp_path: Path) -> None:
    folder, aside = tmp_path / "shop", tmp_path / "aside"
    shutil.copytree(shop, folder)
    LocalStore(folder).rebuild()  # or the service would begin with it
    running = start(folder)
    with running.client() as own:
        rows = own.get("/healthz").json()["rows"]
        about = (folder / "catalog.json").read_text()
        (folder / "catalog.json").write_text("{")
        running.process.send_signal(signal.SIGHUP)
        until(lambda: len(running.log) > 1)
        assert own.post("/search", json={"text": "red mug"}).status_code == 200
        (folder / "catalog.json").write_text(about)
        folder.rename(aside)
        shutil.copytree(aside, folder)
        other = LocalStore(folder)
        other.delete(list(other.digests())[:5])
        other.close()
        assert own.get("/healthz").json()["rows"] == rows  # it has the old one open
        running.process.send_signal(signal.SIGHUP)
        until(lambda: own.get("/healthz").json()["rows"] == rows - 5)
    running.process.terminate()
    running.process.wait(timeout=30)
    running.reader.join()
    assert len(running.log) == 2 and "catalog.json is broken" in running.log[1], "".join(running.log)


def until(true: Callable[[], bool]) -> None:
    """Wait for something."""
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_the_garbage_collector_leaves_alone_what_was_opened(shop: Path) -> None:
    gc.unfreeze()
    service = create_app(lambda: open_engine(shop))
    frozen = gc.get_freeze_count()
    service.shop.reload()
    assert frozen > 10_000 and gc.get_freeze_count() < 1.5 * frozen  # what was open before is gone
    gc.unfreeze()


def test_a_stop_lets_those_who_wait_have_their_answer(shop: Path) -> None:
    running = start(shop)
    with running.client() as client, ThreadPoolExecutor(8) as pool:
        client.get("/healthz")
        asked = [pool.submit(client.post, "/search", json={"text": f"mug {i}"}) for i in range(8)]
        [future.result() for future in asked[:1]]
        running.process.send_signal(signal.SIGINT)
        answers = [future.result() for future in asked if future.exception() is None]
        assert answers and all(answer.status_code == 200 for answer in answers)
    assert running.process.wait(timeout=30) in (0, 130, -signal.SIGINT)
    running.reader.join()
    assert len(running.log) == 1, "".join(running.log)  # where it listens, and nothing in the end


def test_the_description_is_openapi(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.") and "/search" in described["paths"]
    body = described["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"} and json.dumps(body)


def test_the_background_does_one_work_after_the_other_and_never_too_much() -> None:
    async def scenario() -> None:
        done: list[int] = []

        def work(number: int) -> int:
            time.sleep(0.02)
            done.append(number)
            return threading.get_ident()

        background, batcher = Background(waiting=8), Batcher(lambda questions: [threading.get_ident()] * len(questions))
        asked = [asyncio.ensure_future(background.run(partial(work, number))) for number in range(8)]
        await asyncio.sleep(0.01)  # the first is under way
        with pytest.raises(QueueFull):
            await background.run(partial(work, 8))
        answered = await batcher.ask(1)
        assert len(done) < 4  # a request does not wait for it
        threads = set(await asyncio.gather(*asked))
        background.close()
        await batcher.close()
        assert done == list(range(8)) and len(threads | {answered, threading.get_ident()}) == 3

    asyncio.run(scenario())


def test_questions_that_come_while_the_thread_is_busy_go_together() -> None:
    batches: list[list[int]] = []

    def answer(questions: list[int]) -> list[int]:
        batches.append(questions)
        time.sleep(0.2)
        return questions

    async def scenario() -> None:
        batcher = Batcher(answer)
        asked = []
        for number in range(5):
            asked.append(asyncio.ensure_future(batcher.ask(number)))
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*asked) == [0, 1, 2, 3, 4]
        await batcher.close()

    asyncio.run(scenario())
    assert batches == [[0], [1, 2, 3, 4]]


def test_closing_delivers_the_batch_under_way_and_one_that_waits() -> None:
    async def scenario() -> None:
        batcher = Batcher(slow_square)
        first = asyncio.ensure_future(batcher.ask(1))
        await asyncio.sleep(0.02)
        together = [asyncio.ensure_future(batcher.ask(2)), asyncio.ensure_future(batcher.ask(3))]
        assert await first == 1
        await asyncio.sleep(0.02)  # the other two are under way
        await batcher.close()
        assert await asyncio.gather(*together) == [4, 9]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, MemoryError, AssertionError])
def test_a_question_that_fails_fails_alone(error: type[Exception]) -> None:
    sizes = []

    def answer(questions: list[int]) -> list[int]:
        sizes.append(len(questions))
        slow_square([])
        if 13 in questions:
            raise error("broken")
        return slow_square(questions)

    async def scenario() -> None:
        batcher = Batcher(answer)
        answers = await asyncio.gather(*(batcher.ask(number) for number in range(32)), return_exceptions=True)
        assert isinstance(answers[13], error)
        assert [a for i, a in enumerate(answers) if i != 13] == [i * i for i in range(32) if i != 13]
        assert await batcher.ask(5) == 25  # and it goes on
        await batcher.close()

    asyncio.run(scenario())
    assert len(sizes) < 32  # found by halving


def test_answers_that_do_not_match_the_questions_are_an_error_and_no_standstill() -> None:
    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(lambda questions: [])
        with pytest.raises(RuntimeError, match="0 answers to 1 requests"):
            await asyncio.wait_for(batcher.ask(1), 10)
        await batcher.close()

    asyncio.run(scenario())


def slow_square(questions: list[int]) -> list[int]:
    time.sleep(0.05)
    return [question**2 for question in questions]
