"""What strangers may do to the service: nothing that costs much, and nothing to other people's answers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote

import factories
import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from PIL import ExifTags, Image
from test_serving import TOKEN, WRITER, Server, make_shop, until

from dualtower.data.transforms.images import ImageSettings, open_image, to_size
from dualtower.search.engine import open_engine
from dualtower.serving.app import create_app
from dualtower.serving.batching import Background, Batcher, QueueFull
from dualtower.serving.guards import REFUSALS_PER_SECOND, REFUSED_AT_ONCE, RateLimiter
from dualtower.serving.reading import JsonGauge

SECONDS = {"HEAD_SECONDS": 1.5, "BODY_SECONDS": 1.5, "MAX_CONNECTIONS": 24}
WRITE = b"PUT /items HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
JSON = {"content-type": "application/json"}
SEARCH = b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("hostile"))


@contextmanager
def serving(shop: Path, **changed: float) -> Iterator[Server]:
    """A service of which some times and numbers are changed."""
    token = shop.parent / "token"
    token.write_text(TOKEN)
    changes = "".join(f"connections.{name} = {value};" for name, value in changed.items())
    code = f"from dualtower.serving import connections; {changes} from dualtower.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(shop), "--port", "0", "--token-file", str(token)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: list[str] = []
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"on (http://\S+)", line):
            del log[:-1]
            break
    else:
        raise AssertionError("".join(log))
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        yield Server(found[1], process, log, reader)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        reader.join()


@pytest.fixture(scope="module")
def server(shop: Path) -> Iterator[Server]:
    with serving(shop) as running:
        yield running
        log = "".join(running.log)  # what is still computed when it has to end is another matter
    assert log.count("\n") == 1, log  # nobody's mischief fills the log


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


def connected(server: Server, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)
    connection.sendall(sent)
    return connection


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


# ---- without a token


@pytest.mark.parametrize(
    "line", ["PUT /items", "PATCH /items/r1", "DELETE /items/r1", "POST /reload", "PUT /items/r1/image", "POST /items"]
)
def test_who_may_not_write_is_refused_before_a_byte_of_the_body(server: Server, line: str) -> None:
    head = f"{line} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 6000000\r\n\r\n"
    with connected(server, head.encode()) as connection:
        status, _ = answer_of(connection)  # though nothing of the body has been sent
    assert status == (405 if line in ("PUT /items/r1/image", "POST /items") else 401)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[[],[" * 30_000, "more than 8 deep"), ("[" + "[]," * 200_000, "more than 100,000 values")],
)
def test_json_is_counted_while_it_is_read(server: Server, text: str, words: str) -> None:
    head = f"PUT /items HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
    head += "content-type: application/json\r\ncontent-length: 15000000\r\n\r\n"
    with connected(server, head.encode() + text.encode()) as connection:
        status, answer = answer_of(connection)  # though most of the body is still to come
    assert status in (413, 422) and words.encode() in answer


def test_the_gauge_sees_what_json_says_however_it_is_cut() -> None:
    value = {"a\\": ["[[[[[[[[[[[[", 'say "{{{{{{{{{{"', "\\\\", 1.5], "ü\n": {"x": [None, True, '\\"']}}
    text, dice = json.dumps([value] * 20).encode(), random.Random(3)
    for _ in range(50):
        gauge = JsonGauge(most=700, deepest=4)
        cuts = sorted(dice.sample(range(len(text)), 30))
        for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            gauge.feed(text[start:stop])
        assert gauge._depth == 0 and not gauge._in_string
    for most, deepest in [(700, 3), (100, 4)]:
        with pytest.raises(HTTPException):
            JsonGauge(most=most, deepest=deepest).feed(text)


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"json": {"text": "mug", "cursor": base64.urlsafe_b64encode(b"[" * 14_000).decode()}}, 422, "cursor"),
        ({"content": b"[" * 14_000, "headers": JSON}, 422, "more than 8 deep"),
        ({"content": '{"text": "mug"}'.encode("utf-16"), "headers": JSON}, 422, "JSON"),
        ({"content": b'{"limit": ' + b"9" * 10_000 + b"}", "headers": JSON}, 422, ""),
        ({"json": {"text": "mug", "negative_texts": ["x"] * 5000}}, 413, "more than 200 values"),
    ],
)
def test_hostile_questions_are_told_what_is_wrong(client: httpx.Client, sent: dict, status: int, words: str) -> None:
    answer = client.post("/search", **sent)
    assert answer.status_code == status and words in answer.json()["detail"]


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "zlib", "unicode_escape", "nonsense", "utf-16"])
def test_forms_are_utf_8(client: httpx.Client, charset: str) -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="text"\r\n\r\nm\xfcg-\xff\r\n--b--\r\n'
    for place in ("charset={}; boundary=b", 'boundary=b; charset="{}"'):
        kind = f"multipart/form-data; {place.format(charset)}"
        answer = client.post("/search", content=body, headers={"content-type": kind})
        assert answer.status_code == 400 and "the form cannot be read" in answer.json()["detail"]
    good = client.post("/search", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert good.status_code in (200, 400)


def test_similar_takes_no_forged_cursor(client: httpx.Client) -> None:
    for content in (b"[" * 3000, bytes(100), b"\xff" * 2000):
        cursor = base64.urlsafe_b64encode(content).decode()
        assert client.get("/items/r1/similar", params={"cursor": cursor}).status_code == 422


# ---- images


def bomb(side: int = 5000, mode: str = "RGB") -> bytes:
    Image.new(mode, (side, side)).save(stream := io.BytesIO(), "PNG", compress_level=9)
    return stream.getvalue()


@pytest.mark.slow
def test_image_bombs_neither_hold_up_questions_nor_fill_the_memory(server: Server) -> None:
    content = bomb(mode="RGBA")
    assert len(content) < 200_000
    before, answers, stop = memory(server, "VmRSS"), list[int](), threading.Event()

    def attack() -> None:
        with server.client() as own:
            while not stop.is_set():
                with suppress(httpx.TimeoutException):  # they wait for all others
                    answers.append(own.post("/search", files={"image": ("a.png", content)}).status_code)

    threads = [threading.Thread(target=attack) for _ in range(24)]
    for thread in threads:
        thread.start()
    with server.client() as honest:
        until(lambda: len(answers) > 4)
        photo = factories.png(factories.photo(7))
        for _ in range(20):
            assert honest.post("/search", json={"text": "red mug"}).status_code == 200
            found = honest.post("/search", files={"image": ("photo.png", photo)}).json()["hits"]
            assert found[0]["id"] == "r7"
    stop.set()
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 429} and 429 in answers
    assert memory(server, "VmHWM") - before < 700, f"{before} MiB before"


def memory(server: Server, name: str) -> float:
    """Mebibytes of a service."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "P", "LA", "WEBP", "I;16", "1", "CMYK"])
@pytest.mark.parametrize("turned", [1, 6])
def test_an_image_that_is_made_smaller_while_it_is_decoded_looks_the_same(kind: str, turned: int) -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    large = smooth.resize((1400, 1800), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    match kind:
        case "JPEG" | "PNG" | "WEBP":
            large.save(stream := io.BytesIO(), kind, exif=exif)
        case "I;16":
            deep = np.asarray(large.convert("L")).astype(np.uint16) * 257
            Image.fromarray(deep).save(stream := io.BytesIO(), "PNG", exif=exif)
        case "CMYK":
            large.convert("CMYK").save(stream := io.BytesIO(), "JPEG", exif=exif)
        case _:
            large.convert(kind).save(stream := io.BytesIO(), "PNG", exif=exif)
    settings = ImageSettings(height=40, width=30)
    whole = to_size(open_image(stream.getvalue()), settings)
    made = open_image(stream.getvalue(), near=120)
    assert min(made.size) >= 120
    difference = np.abs(np.asarray(whole).astype(int) - np.asarray(to_size(made, settings)).astype(int))
    assert difference.mean() < 1.5 and difference.max() <= 16


# ---- queues


def test_explanations_do_not_stand_in_the_way_of_writers(shop: Path) -> None:
    service = create_app(lambda: open_engine(shop))
    held = threading.Event()

    async def scenario() -> None:
        asked = [asyncio.ensure_future(service.shop.explaining.run(held.wait)) for _ in range(16)]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull):
            await service.shop.explain("red mug", "r1")
        assert await asyncio.wait_for(service.shop.background.run(lambda: 5), 20) == 5
        held.set()
        await asyncio.gather(*asked)
        explained = await service.shop.explain("red mug", "r1")
        assert explained is not None and [word for word, _ in explained.words] == ["red", "mug"]
        await service.shop.close()

    asyncio.run(scenario())


def test_a_flood_of_explanations_is_answered_or_put_off(server: Server) -> None:
    async def flood() -> list[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=60)) as own:
            asked = [own.get("/items/r3/explain", params={"text": "red dress"}) for _ in range(60)]
            item = {"id": "beside", "title": "Fila striped dress"}
            write = own.put("/items", json=[item], headers=WRITER)
            *answers, written = await asyncio.gather(*asked, write)
            assert written.json() == {"written": 1}
            return [answer.status_code for answer in answers]

    statuses = asyncio.run(flood())
    assert set(statuses) == {200, 429}


def test_nonsense_is_refused_at_a_pace(shop: Path) -> None:
    """Who sends it as fast as it is refused has to wait, and nobody else."""
    with serving(shop) as running:

        async def flood() -> tuple[float, list[float]]:
            limits = httpx.Limits(max_connections=8)
            async with (
                httpx.AsyncClient(base_url=running.url, timeout=60, limits=limits) as own,
                httpx.AsyncClient(base_url=running.url, timeout=60) as honest,
            ):
                begin, taken = time.perf_counter(), list[float]()
                refused = asyncio.gather(*(own.post("/search", content=b"{") for _ in range(320)))
                while not refused.done():
                    asked = time.perf_counter()
                    assert (await honest.post("/search", json={"text": "red mug"})).status_code == 200
                    taken.append(time.perf_counter() - asked)
                    await asyncio.sleep(0.02)
                assert {answer.status_code for answer in await refused} == {415}
                return time.perf_counter() - begin, taken

        seconds, taken = asyncio.run(flood())
    assert seconds > (320 - REFUSED_AT_ONCE) / REFUSALS_PER_SECOND
    assert sorted(taken)[len(taken) // 2] < 0.3


def test_a_pace_lets_some_pass_at_once_and_keeps_nobody_for_long() -> None:
    async def waits(count: int, **settings: float) -> float:
        pace, begin = RateLimiter(100, **settings), time.perf_counter()
        await asyncio.gather(*(pace.wait() for _ in range(count)))
        return time.perf_counter() - begin

    assert asyncio.run(waits(50)) >= 0.45
    assert asyncio.run(waits(50, at_once=60)) < 0.3
    assert 0.15 < asyncio.run(waits(500, longest=0.2)) < 1.5


def test_background_works_wait_in_their_own_line() -> None:
    async def scenario() -> None:
        quick = Background(waiting=2, low_priority=False)
        asked = [asyncio.ensure_future(quick.run(lambda: time.sleep(0.1))) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull):
            await quick.run(int)
        await asyncio.gather(*asked)
        assert await quick.run(int) == 0
        quick.close()

    asyncio.run(scenario())


# ---- connections


def test_slow_heads_and_bodies_are_given_up(shop: Path) -> None:
    with serving(shop, **SECONDS) as running, ExitStack() as stack:
        slow = {
            "nothing": connected(running),
            "half a line": connected(running, b"GET /healthz HT"),
            "half a head": connected(running, SEARCH),
            "no body": connected(running, SEARCH + b"content-length: 100\r\n\r\n"),
            "half a body": connected(running, SEARCH + b'content-length: 100\r\n\r\n{"text": "m'),
            "a body for nobody": connected(
                running, SEARCH.replace(b"POST /search", b"PUT /items") + b"content-length: 9\r\n\r\n"
            ),
        }
        ended: dict[str, bytes] = {}

        def trickle(name: str, connection: socket.socket) -> None:
            connection.settimeout(0.3)
            said = b""
            for _ in range(100):  # a byte now and then: no sign of life
                try:
                    if name in ("half a head", "half a body"):
                        connection.sendall(b"a")
                    received = connection.recv(1000)
                    if not received:
                        break
                    said += received
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                return
            ended[name] = said

        threads = [threading.Thread(target=trickle, args=pair) for pair in slow.items()]
        for thread in threads:
            thread.start()
        with running.client() as honest:
            for _ in range(10):
                assert honest.post("/search", json={"text": "red mug"}).status_code == 200
        for thread in threads:
            thread.join()
        for connection in slow.values():
            stack.enter_context(connection)
    assert ended.keys() == slow.keys()
    for name in ("half a line", "half a head", "no body", "half a body"):
        assert ended[name].startswith(b"HTTP/1.1 408"), name
    assert ended["a body for nobody"].startswith(b"HTTP/1.1 401") and ended["nothing"] == b""
    assert len(running.log) == 1, "".join(running.log)


def test_many_idle_connections_keep_out_only_each_other(shop: Path) -> None:
    with serving(shop, MAX_CONNECTIONS=24) as running, running.client() as honest, ExitStack() as stack:
        for number in range(200):
            stack.enter_context(connected(running, SEARCH if number % 2 else b""))
            if number % 20 == 0:
                assert honest.post("/search", json={"text": "red mug"}).status_code == 200
        with running.client() as newcomer:
            assert newcomer.post("/search", json={"text": "red mug"}).status_code == 200


def test_who_comes_in_crowds_waits_outside_or_is_sent_away(shop: Path) -> None:
    def ends(connection: socket.socket) -> float:
        """Seconds after which the service closes a connection."""
        connection.settimeout(20)
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
        return time.perf_counter() - begin

    settings = {"MAX_CONNECTIONS": 4, "MAX_OUTSIDE": 10, "ADMISSION": 0.3, "HEAD_SECONDS": 60}
    with serving(shop, **settings) as running, ExitStack() as stack:
        begin = time.perf_counter()
        crowd = [stack.enter_context(connected(running, b"")) for _ in range(20)]
        for connection in crowd[14:]:  # there is no room for them
            ends(connection)
        for place, connection in enumerate(crowd[:4], 1):  # each gives its place to one of those outside
            assert ends(connection) >= 0.25 * place
        with running.client() as newcomer:
            assert newcomer.post("/search", json={"text": "red mug"}).status_code == 200


def told_to(running: Server, sent: bytes, *, seconds: float = 20.0) -> bytes:
    """What is answered to somebody who sends all that the service takes, until it cuts the connection."""
    with connected(running) as connection:
        connection.settimeout(seconds)
        said = b""
        with suppress(ConnectionError, BrokenPipeError):
            connection.sendall(sent)
        with suppress(ConnectionError):
            while received := connection.recv(65536):
                said += received
    return said


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a:b\r\n" * 4000,
        b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 5_000_000,
        b"GET /" + b"b" * 5_000_000,
        SEARCH + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"a:b\r\n" * 1_000_000,
        SEARCH + b"transfer-encoding: chunked\r\n\r\n2;" + b"a" * 5_000_000,
        b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2000,
    ],
    ids=["many headers", "a large header", "a large path", "trailers", "a large chunk size", "many at once"],
)
def test_heads_and_what_stands_around_bodies_are_bounded(server: Server, sent: bytes) -> None:
    begin = time.monotonic()
    said = told_to(server, sent)
    assert time.monotonic() - begin < 8  # not by a time-out
    assert said.count(b"HTTP/1.1 200") < 50


@pytest.mark.slow
def test_answers_that_nobody_reads_are_given_up(shop: Path) -> None:
    wanted = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with serving(shop, **SECONDS) as running, ExitStack() as stack:
        deaf = []
        for _ in range(40):  # more than may be connected
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
            deaf.append(connection)
            connection.settimeout(0.02)
            with suppress(OSError):
                for _ in range(2000):
                    connection.sendall(wanted)
            with running.client() as newcomer:
                assert newcomer.post("/search", json={"text": "red mug"}).status_code == 200
        ended = 0
        for connection in deaf:
            connection.settimeout(10)
            with suppress(ConnectionError):
                while connection.recv(65536):
                    pass
            ended += 1  # a reset, or the end of what had been sent
        assert ended == len(deaf)


@pytest.mark.slow
def test_a_large_body_that_comes_steadily_is_read(shop: Path) -> None:
    with serving(shop, BODY_SECONDS=0.5, MIN_BYTES=50_000) as running:
        photo = base64.b64encode(factories.png(factories.photo(7))).decode()
        body = json.dumps({"image": photo, "limit": 1}).encode() + b" " * 3_000_000
        with connected(running, SEARCH + f"content-length: {len(body)}\r\n\r\n".encode()) as connection:
            for start in range(0, len(body), 100_000):
                connection.sendall(body[start : start + 100_000])
                time.sleep(0.05)
            assert answer_of(connection)[0] == 200


def test_clients_that_leave_are_nobody_s_error(server: Server, client: httpx.Client) -> None:
    for sent in (
        SEARCH + b"content-length: 1000\r\n\r\n{",
        SEARCH.replace(b"application/json", b"multipart/form-data; boundary=b")
        + b"content-length: 1000\r\n\r\n--b\r\n",
        SEARCH.replace(b"POST /search", b"PUT /items")
        + f"authorization: Bearer {TOKEN}\r\ncontent-length: 1000\r\n\r\n[".encode(),
        SEARCH + b'content-length: 15\r\n\r\n{"text": "mug"}',
    ):
        for _ in range(3):
            connected(server, sent).close()
    until(lambda: 'status="499"' in client.get("/metrics").text)
    assert 'status="500"' not in client.get("/metrics").text
    assert len(server.log) == 1, "".join(server.log)


# ---- items


@pytest.mark.parametrize(
    "row_id", ["a/image", "b/explain", "c/d/similar", "image", "50% off?", "x\ny", "ü/é #1", "e%2Ff"]
)
def test_rows_of_any_id_can_be_read(client: httpx.Client, row_id: str) -> None:
    photo = factories.png(factories.photo(sum(map(ord, row_id))))
    item = {"id": row_id, "title": "Fila dress", "image": base64.b64encode(photo).decode()}
    assert client.put("/items", json=[item], headers=WRITER).json() == {"written": 1}
    at = f"/items/{quote(row_id, safe='')}"
    assert client.get(at).json()["id"] == row_id
    assert client.get(f"{at}/image").content == photo
    assert client.get(f"{at}/similar").json()["hits"]
    assert client.get(f"{at}/explain", params={"text": "dress"}).json()["words"]
    changed = client.patch(at, json={"attributes": {"color": "red"}}, headers=WRITER)
    assert changed.json()["row"]["attributes"]["color"] == "red"
    assert client.delete(at, headers=WRITER).json() == {"removed": 1}
    assert client.get(at).status_code == 404


def test_head_says_what_get_would(client: httpx.Client) -> None:
    for path in (
        "/",
        "/page/search.js",
        "/items/r3",
        "/items/r3/image",
        "/about",
        "/healthz",
        "/metrics",
        "/items/none",
    ):
        got, asked = client.get(path), client.head(path)
        assert asked.status_code == got.status_code and asked.content == b"", path
        assert asked.headers["content-type"] == got.headers["content-type"], path
        if path != "/metrics":
            assert asked.headers["content-length"] == str(len(got.content)), path
    assert client.head("/search").status_code == 405


def test_no_image_says_where_it_was_taken(client: httpx.Client, shop: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Maria"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    factories.photo(77, (40, 30)).save(stream := io.BytesIO(), "JPEG", exif=exif)
    assert b"Maria" in stream.getvalue()
    item = {"id": "photo", "title": "Fila dress", "image": base64.b64encode(stream.getvalue()).decode()}
    assert client.put("/items", json=[item], headers=WRITER).status_code == 200
    served = client.get("/items/photo/image").content
    stored = open_engine(shop).store.image("photo")
    for content in (served, stored):
        assert content is not None and b"Maria" not in content
        with Image.open(io.BytesIO(content)) as opened:
            assert dict(opened.getexif()) == {ExifTags.Base.Orientation: 6}
    found = client.post("/search", json={"image": item["image"], "limit": 1}).json()["hits"]
    assert found[0]["id"] == "photo" and found[0]["score"] == pytest.approx(1, abs=2e-3)


def test_an_integer_is_no_fraction(client: httpx.Client) -> None:
    item = {"id": "year", "title": "Fila dress", "attributes": {"color": 2005, "price": 12}}
    assert client.put("/items", json=[item], headers=WRITER).status_code == 200
    assert client.get("/items/year").json()["row"]["attributes"] == {"color": "2005", "price": 12}
    found = client.post("/search", json={"text": "dress", "where": "color = '2005'", "target": "text"}).json()["hits"]
    assert [hit["id"] for hit in found] == ["year"]


def test_a_large_image_in_json_is_read_like_a_small_one(client: httpx.Client) -> None:
    photo = base64.b64encode(factories.png(factories.photo(7, (900, 700)))).decode()
    assert len(photo) > 1 << 20
    small = client.post("/search", files={"image": ("a.png", base64.b64decode(photo))}).json()["hits"]
    assert client.post("/search", json={"image": photo}).json()["hits"] == small
    for wrong in ("%" + photo[1:], photo[:-1], photo + "é"):
        answer = client.post("/search", json={"image": wrong})
        assert answer.status_code == 422, answer.text
    assert client.post("/search", json=[photo]).status_code == 422
    assert client.post("/search", json={"image": photo, "txet": "a"}).status_code == 422
    assert client.post("/search", content=b"[" + photo.encode(), headers=JSON).status_code == 422


def test_a_body_that_nobody_reads_does_not_go_on_for_ever(server: Server) -> None:
    with connected(server, WRITE + b"content-length: 1000000000\r\n\r\n") as connection:
        assert answer_of(connection)[0] == 413
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(bytes(1_000_000))


def test_questions_of_those_who_left_are_not_answered() -> None:
    seen: list[int] = []

    def answer(questions: list[int]) -> list[int]:
        seen.extend(questions)
        time.sleep(0.1)
        return questions

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(answer)
        first = asyncio.ensure_future(batcher.ask(1))
        await asyncio.sleep(0.05)
        others = [batcher.ask(number, is_moot=lambda number=number: number % 2 == 0) for number in range(2, 200)]
        assert await asyncio.gather(first, *others) == [1, *(n if n % 2 else None for n in range(2, 200))]
        await batcher.close()

    asyncio.run(scenario())
    assert sorted(seen) == list(range(1, 200, 2))
