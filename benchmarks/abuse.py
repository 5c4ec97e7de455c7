"""Twelve attacks without a token, while 16 honest clients search: does anybody notice?

    python benchmarks/abuse.py --catalog shop.catalog

A server process on loopback answers 16 clients, each of which sends its next request, a title of the catalog, when
it has an answer. First they are alone; then, one after the other, each attack runs beside them in a process of its own
for `--seconds`. All compete for the same cores, attackers included. An honest answer that is no 200 is a failure; the
p99 of the honest may be three times the quiet one's, and the server's memory 1,500 MiB at its peak. Takes five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import multiprocessing
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from common import save_results
from PIL import Image
from service import Service, ask, http_request, search_request, serving, titles

HONEST = 16
FORM = "multipart/form-data; boundary=b"
MAX_SLOWER, MAX_MIB = 3.0, 1500
Attack = Callable[[int, float], Awaitable[Counter[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=15, help="of each attack")
    parser.add_argument("--only", nargs="*", default=[], metavar="ATTACK", help="words of the attacks to run")
    args = parser.parse_args()
    requests = [search_request(title) for title in titles(args.catalog)]
    chosen = [name for name in ATTACKS if not args.only or any(word in name for word in args.only)]
    rows, figures = [], dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        token.write_text("a token for this benchmark alone")
        with serving(args.catalog, token_file=token) as service:
            asyncio.run(honest(service, requests, 3))
            begin, quiet = peak(service), 0.0
            for name in ["(quiet)", *chosen]:
                reset_peak(service)
                taken, failed, statuses = beside(service, requests, name, args.seconds)
                p50, p99 = np.percentile(taken, [50, 99]) * 1000
                quiet = quiet or p99
                figures[name] = {
                    "answers": len(taken),
                    "failed": failed,
                    "p50_ms": float(p50),
                    "p99_ms": float(p99),
                    "times_quiet": float(p99 / quiet),
                    "peak_mib": peak(service),
                    "attack_answers": dict(statuses),
                }
                told = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
                rows.append([name, f"{len(taken):,}", str(failed), f"{p50:.0f} ms", f"{p99:.0f} ms"])
                rows[-1] += [f"{p99 / quiet:.1f}", f"{figures[name]['peak_mib']:,.0f} MiB", told]
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
            alive = service.process.poll() is None
    wrong = judge(figures, alive)
    header = ["attack", "honest answers", "failed", "p50", "p99", "of quiet", "peak memory", "what attackers got"]
    save_results(
        "abuse",
        title=f"{len(chosen)} attacks while {HONEST} clients search: {len(wrong)} findings",
        tables=[(header, rows)],
        values={"attacks": figures, "wrong": wrong, "mib_before": begin},
    )
    if wrong:
        sys.exit("\n".join(wrong))


def judge(figures: dict[str, Any], alive: bool) -> list[str]:
    """What is worse than it may be."""
    wrong = [] if alive else ["the server has died"]
    for name, found in figures.items():
        if found["failed"]:
            wrong.append(f"{name}: {found['failed']} honest answers failed")
        if found["times_quiet"] > MAX_SLOWER:
            wrong.append(f"{name}: p99 is {found['times_quiet']:.1f} times the quiet one's")
        if found["peak_mib"] > MAX_MIB:
            wrong.append(f"{name}: {found['peak_mib']:,.0f} MiB")
    return wrong


def beside(service: Service, requests: list[bytes], name: str, seconds: float) -> tuple[list[float], int, Counter[str]]:
    """Let the honest search while an attack runs in a process of its own; their times, failures, and its answers."""
    if name not in ATTACKS:
        return *asyncio.run(honest(service, requests, seconds)), Counter()
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    attacker = context.Process(target=attack, args=(name, service.port, seconds, answers), daemon=True)
    attacker.start()
    answers.get(timeout=60)  # it begins
    taken, failed = asyncio.run(honest(service, requests, seconds))
    statuses = answers.get(timeout=seconds + 60)
    attacker.join(timeout=30)
    return taken, failed, statuses


def attack(name: str, port: int, seconds: float, answers: Any) -> None:
    """Run one attack, and tell what it was answered."""
    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    made = ATTACKS[name]()
    answers.put("begins")
    answers.put(asyncio.run(made(port, seconds)))


async def honest(service: Service, requests: list[bytes], seconds: float) -> tuple[list[float], int]:
    """Seconds of every answer of the honest clients, and how many failed."""
    taken, failed, end = list[float](), 0, time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal failed
        connection = None
        while time.perf_counter() < end:
            begin = time.perf_counter()
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", service.port)
                good = await ask(*connection, requests[(number + len(taken)) % len(requests)])
            except (OSError, asyncio.IncompleteReadError):
                good, connection = False, None
                await asyncio.sleep(0.05)
            taken.append(time.perf_counter() - begin)
            failed += not good
        if connection:
            connection[1].close()

    await asyncio.gather(*(client(i * 31) for i in range(HONEST)))
    return taken, failed


def hammer(requests: list[bytes], connections: int) -> Attack:
    """Send the same requests again and again, over some connections."""

    async def run(port: int, seconds: float) -> Counter[str]:
        statuses, end = Counter[str](), time.perf_counter() + seconds

        async def attacker(number: int) -> None:
            while time.perf_counter() < end:
                writer = None
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    while time.perf_counter() < end:
                        await send(writer, requests[number % len(requests)])
                        head = await reader.readuntil(b"\r\n\r\n")
                        if length := re.search(rb"content-length: (\d+)", head):
                            await reader.readexactly(int(length[1]))
                        statuses[head[9:12].decode()] += 1
                except (OSError, asyncio.IncompleteReadError):
                    statuses["closed"] += 1
                    await asyncio.sleep(0.01)
                finally:
                    if writer:
                        writer.transport.abort()

        tasks = [asyncio.create_task(attacker(number)) for number in range(connections)]
        _, pending = await asyncio.wait(tasks, timeout=seconds + 10)
        statuses["no answer"] = len(pending)
        for task in pending:
            task.cancel()
        return +statuses

    return run


async def send(writer: asyncio.StreamWriter, request: bytes) -> None:
    """In pieces, as asyncio moves the rest of what it holds each time that it sends some."""
    for start in range(0, len(request), 1 << 18):
        writer.write(request[start : start + (1 << 18)])
        await writer.drain()


def trickle(begin: bytes, connections: int) -> Attack:
    """Open connections, say something on each, and then a byte a second."""

    async def run(port: int, seconds: float) -> Counter[str]:
        statuses, end = Counter[str](), time.perf_counter() + seconds

        async def attacker() -> None:
            while time.perf_counter() < end:
                writer = None
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(begin)
                    while time.perf_counter() < end:
                        with contextlib.suppress(TimeoutError):
                            said = await asyncio.wait_for(reader.read(100), 1.0)
                            statuses[said[9:12].decode() or "closed"] += 1
                            break
                        writer.write(b"a")
                except OSError:
                    statuses["closed"] += 1
                    await asyncio.sleep(0.1)
                finally:
                    if writer:
                        writer.transport.abort()

        await asyncio.gather(*(attacker() for _ in range(connections)))
        return statuses

    return run


def leave(request: bytes, connections: int) -> Attack:
    """Ask, and go away before the answer."""

    async def run(port: int, seconds: float) -> Counter[str]:
        statuses, end = Counter[str](), time.perf_counter() + seconds

        async def attacker() -> None:
            while time.perf_counter() < end:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(request)
                    await asyncio.sleep(0.05)
                    writer.transport.abort()
                    statuses["left"] += 1

        await asyncio.gather(*(attacker() for _ in range(connections)))
        return statuses

    return run


def raw(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    """A whole request."""
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(content: bytes, kind: str = FORM) -> bytes:
    """A request in a form, with an image."""
    parts = b'--b\r\ncontent-disposition: form-data; name="text"\r\n\r\nmug\r\n--b\r\n'
    parts += b'content-disposition: form-data; name="image"; filename="a"\r\n\r\n' + content + b"\r\n--b--\r\n"
    return raw("POST", "/search", parts, kind)


def bomb(mode: str, kind: str = "PNG") -> bytes:
    """25 megapixels in some 80 kB."""
    Image.new(mode, (5000, 5000)).save(stream := io.BytesIO(), kind)
    return stream.getvalue()


def json_without_token() -> Attack:
    """Six megabytes of empty lists for a route that only writers may use."""
    return hammer([raw("PUT", "/items", b"[" + b"[]," * 2_000_000 + b"[]]")], 4)


def json_that_unfolds() -> Attack:
    """The same, deep and wide, where anybody may ask."""
    wide, deep = b'{"negative_texts": [' + b"[]," * 2_000_000 + b"[]]}", b"[" * 6_000_000
    return hammer([raw("POST", "/search", wide), raw("POST", "/search", deep)], 4)


def nested_cursors() -> Attack:
    """Cursors that are nested lists."""
    cursor = base64.urlsafe_b64encode(b"[" * 14_000).decode()
    return hammer([http_request("POST", "/search", {"text": "mug", "cursor": cursor})], 16)


def forged_cursors() -> Attack:
    """Cursors of this search, with another vector."""

    async def run(port: int, seconds: float) -> Counter[str]:
        cursor = base64.urlsafe_b64decode((await page(port))["cursor"])
        forged = [cursor[:-32] + struct.pack("<f", value) * 8 for value in (3e38, float("inf"), float("nan"), 1e5)]
        bodies = [{"text": "mug", "limit": 1, "cursor": base64.urlsafe_b64encode(c).decode()} for c in forged]
        return await hammer([http_request("POST", "/search", body) for body in bodies], 16)(port, seconds)

    return run


def of_a_row(*asked: str, connections: int) -> Attack:
    """Requests about a row."""

    async def run(port: int, seconds: float) -> Counter[str]:
        row_id = quote((await page(port))["hits"][0]["id"], safe="")
        return await hammer([raw("GET", path.replace("ROW", row_id)) for path in asked], connections)(port, seconds)

    return run


async def page(port: int) -> dict[str, Any]:
    """What a search for mugs finds first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(http_request("POST", "/search", {"text": "mug", "limit": 1}))
    length = re.search(rb"content-length: (\d+)", await reader.readuntil(b"\r\n\r\n"))
    told = json.loads(await reader.readexactly(int(length[1]) if length else 0))
    writer.close()
    return told


def punycode_forms() -> Attack:
    """Forms in an encoding that takes its time."""
    return hammer([form(b"x" * 50_000, f"{FORM}; charset={charset}") for charset in ("punycode", "idna")], 8)


def image_bombs() -> Attack:
    """Forty images of 25 megapixels at once, each of some kilobytes."""
    return hammer([form(bomb("RGB")), form(bomb("RGBA")), form(bomb("RGB", "JPEG")), form(bomb("P"))], 40)


def large_bodies() -> Attack:
    """Sixty-four bodies of 15 megabytes at once."""
    body = json.dumps({"image": "A" * 15_000_000}).encode()
    return hammer([raw("POST", "/search", body), form(b"x" * 15_000_000)], 64)


ATTACKS: dict[str, Callable[[], Attack]] = {
    "6 MB of JSON without a token": json_without_token,
    "JSON that unfolds": json_that_unfolds,
    "nested cursors": nested_cursors,
    "forged cursors": forged_cursors,
    "forms in punycode": punycode_forms,
    "image bombs": image_bombs,
    "bodies of 15 MB": large_bodies,
    "1,500 slow heads": lambda: trickle(b"POST /search HTTP/1.1\r\nhost: 127.0.0.1\r\n", 1500),
    "1,500 slow bodies": lambda: trickle(raw("POST", "/search", b" " * 1000)[:-990], 1500),
    "explanations": lambda: of_a_row("/items/ROW/explain?text=red+mug", connections=64),
    "similar products": lambda: of_a_row("/items/ROW/similar?limit=100", "/about", connections=16),
    "clients that leave": lambda: leave(search_request("mug"), 16),
}


def peak(service: Service) -> float:
    """Mebibytes that the service has held at most since `reset_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else service.memory()


def reset_peak(service: Service) -> None:
    """Begin to measure anew, where the system lets us."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
