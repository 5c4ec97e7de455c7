"""A service in a process of its own, and clients that ask it: what the HTTP benchmarks share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualtower.search.local.store import LocalStore


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen
    port: int

    def memory(self) -> float:
        """Mebibytes of it in memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def serving(
    catalog: Path, *, largest: int = 64, token_file: Path | None = None, rerank: int | None = None
) -> Iterator[Service]:
    """Start a service on loopback, and stop it in the end.

    Args:
        catalog: What it serves.
        largest: Requests per batch.
        token_file: Of the writers; None lets nobody write.
        rerank: Rows of each request that are re-ranked; None re-ranks nothing.
    """
    token = f"Path({str(token_file)!r})" if token_file else None
    code = (
        "from pathlib import Path; from dualtower.serving import batching, server\n"
        f"batching.LARGEST = {largest}\n"
        f"server.serve(server.ServerConfig({str(catalog)!r}, port=0, token_file={token}, rerank={rerank}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        yield Service(process, _port(process))
    finally:
        process.terminate()
        process.wait()


def _port(process: subprocess.Popen) -> int:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+:(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the service
            return int(found[1])
    raise RuntimeError("the server did not start")


def titles(catalog: Path, number: int = 2000) -> list[str]:
    """Titles of a catalog, shuffled."""
    store = LocalStore(catalog)
    view = store.searcher.views.current()
    chosen = view.numbers[np.random.default_rng(0).permutation(view.everything["text"].slots)[:number]].tolist()
    rows = store.catalog.at(chosen)
    store.close()
    return [rows[version].title for version in chosen]


def search_request(text: str) -> bytes:
    """A whole HTTP request, made beforehand so that the clients cost little."""
    return http_request("POST", "/search", {"text": text, "limit": 10})


def http_request(method: str, path: str, content: object, **headers: str) -> bytes:
    """A whole HTTP request with a JSON body."""
    body = json.dumps(content).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    """Whether a request was answered with 200."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    await reader.readexactly(int(length[1]))
    return head.startswith(b"HTTP/1.1 200")


async def load(
    service: Service, requests: list[bytes], clients: int, until: Awaitable[object]
) -> tuple[list[float], int]:
    """Let clients ask, each its next request when it has an answer, until something else has ended.

    Returns:
        Seconds of every answer, and how many were no 200.
    """
    taken: list[float] = []
    errors = 0
    other = asyncio.ensure_future(until)

    async def client(number: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        while not other.done():
            begin = time.perf_counter()
            good = await ask(reader, writer, requests[(number + len(taken)) % len(requests)])
            taken.append(time.perf_counter() - begin)
            errors += not good
        writer.close()

    await asyncio.gather(*(client(i * 31) for i in range(clients)))
    await other
    return taken, errors


def load_for(service: Service, requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], int]:
    """`load` for a time."""

    async def timed() -> tuple[list[float], int]:
        return await load(service, requests, clients, asyncio.sleep(seconds))

    return asyncio.run(timed())
