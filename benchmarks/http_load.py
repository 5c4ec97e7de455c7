"""Many clients against one service: does answering them together pay?

    python benchmarks/http_load.py --catalog shop.catalog

A server process on loopback is asked by 1, 8 and 64 clients that send their next request when they have an answer
(plain HTTP/1.1 over kept connections, requests made beforehand, so that the clients cost little). Requests are titles
of the catalog. The rows "not batched" answer one request at a time. `--soak MINUTES` goes on with 64 clients and
writes down the server's memory every minute.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from common import save_results
from service import Service, load_for, search_request, serving, titles

RUNS = [("1, not batched", 1, 1), ("1", 1, 64), ("8", 8, 64), ("64", 64, 64), ("64, not batched", 64, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20, help="per measurement")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    args = parser.parse_args()
    requests = [search_request(title) for title in titles(args.catalog)]
    rows, figures, alone = [], {}, 0.0
    for name, clients, largest in RUNS:
        with serving(args.catalog, largest=largest) as service:
            load_for(service, requests, clients, 3)
            taken, errors = load_for(service, requests, clients, args.seconds)
            memory = soak(service, requests, args.soak) if args.soak and name == "64" else []
        p50, p99 = np.percentile(taken, [50, 99]) * 1000
        rate = len(taken) / args.seconds
        alone = alone or rate
        figures[name] = {"queries_per_s": rate, "p50_ms": float(p50), "p99_ms": float(p99), "errors": errors}
        if memory:
            figures[name]["soak_mib"] = memory
        rows.append([name, f"{rate:.0f}", f"{rate / alone:.2f}", f"{p50:.1f} ms", f"{p99:.1f} ms", str(errors)])
    save_results(
        "http_load",
        title=f"HTTP search, {os.cpu_count()} cores for server and clients",
        tables=[(["clients", "queries/s", "of the first", "p50", "p99", "errors"], rows)],
        values=figures,
    )


def soak(service: Service, requests: list[bytes], minutes: float) -> list[float]:
    """Ask on, and write down the memory of every minute in mebibytes."""
    memory = []
    for minute in range(round(minutes)):
        _, errors = load_for(service, requests, 64, 60)
        memory.append(service.memory())
        print(f"minute {minute + 1}: {memory[-1]:.0f} MiB, {errors} errors", flush=True)
    return memory


if __name__ == "__main__":
    main()
