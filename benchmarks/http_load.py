"""Many clients against one service: does answering them together pay?

    python benchmarks/http_load.py --catalogue shop.catalogue

A server process on loopback is asked by 1, 8 and 64 clients that send their next question when they have an answer
(plain HTTP/1.1 over kept connections, requests made beforehand, so that the clients cost little). Questions are titles
of the catalogue. The last row turns batching off (one question per batch) for 64 clients. `--soak MINUTES` goes on with
64 clients and prints the server's memory every minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import save_results

from dualtower.retrieval.local import LocalStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20, help="per measurement")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    args = parser.parse_args()
    store = LocalStore(args.catalogue)
    view = store.searcher.views.current()
    slots = np.random.default_rng(0).permutation(view.everything["text"].slots)[:2000]
    requests = [request(row.title) for row in store.catalogue.at(slots.tolist())]
    rows, figures = [], {}
    for name, clients, largest in [("1", 1, 64), ("8", 8, 64), ("64", 64, 64), ("64, not batched", 64, 1)]:
        process, port = serve(args.catalogue, largest)
        asyncio.run(load(port, requests, clients, 3))
        taken, errors = asyncio.run(load(port, requests, clients, args.seconds))
        p50, p99 = np.percentile(taken, [50, 99]) * 1000
        rate = len(taken) / args.seconds
        figures[name] = {"queries_per_s": rate, "p50_ms": float(p50), "p99_ms": float(p99), "errors": errors}
        ratio = rate / figures["1"]["queries_per_s"]
        rows.append([name, f"{rate:.0f}", f"{ratio:.2f}", f"{p50:.1f} ms", f"{p99:.1f} ms", str(errors)])
        if args.soak and name == "64":
            soak(process.pid, port, requests, args.soak)
        process.terminate()
        process.wait()
    save_results(
        "http_load",
        title=f"HTTP search over {len(store):,} rows, {os.cpu_count()} cores for server and clients",
        tables=[(["clients", "queries/s", "of one client", "p50", "p99", "errors"], rows)],
        values=figures,
    )


def request(text: str) -> bytes:
    """A whole HTTP request."""
    body = json.dumps({"text": text, "limit": 10}).encode()
    head = ["POST /search HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def serve(catalogue: Path, largest: int) -> tuple[subprocess.Popen, int]:
    """A server process, and its port."""
    code = (
        "import sys; from dualtower.serving import batching, server\n"
        f"batching.LARGEST = {largest}\n"
        f"server.serve(server.ServerConfig({str(catalogue)!r}, port=0))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+:(\d+)", line):
            return process, int(found[1])
    raise RuntimeError("the server did not start")


async def load(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of every answer, and how many were no 200."""
    taken: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (begin := time.perf_counter()) < end:
            writer.write(requests[(number + len(taken)) % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            taken.append(time.perf_counter() - begin)
            errors += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    await asyncio.gather(*(client(i * 31) for i in range(clients)))
    return taken, errors


def soak(pid: int, port: int, requests: list[bytes], minutes: float) -> None:
    """Ask on, and watch the memory."""
    for minute in range(round(minutes)):
        _, errors = asyncio.run(load(port, requests, 64, 60))
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        print(f"minute {minute + 1}: {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f} MiB, {errors} errors", flush=True)


if __name__ == "__main__":
    main()
