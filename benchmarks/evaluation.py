"""Exact ranks in both directions against the bare matrix product of the same size: time and memory.

    python benchmarks/evaluation.py

Two sets of random unit vectors, float32, one relevant item per query. `matched`: a relevant item resembles its query,
as in a trained model. `unrelated`: it does not, so that its score lies where scores are densest, which is the
hardest case for exact ranks. The bare product is the fastest of several block sizes, without looking at the scores.

Each measurement is a process of its own. Memory is the high-water mark of resident memory during the ranking, less
what was resident once the inputs were there and a product had been computed. Bare product and ranks take turns,
several rounds; ratios are taken within a round, the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import counted, save_results, spread
from torch import Tensor
from torch.nn import functional as F

from dualtower.evaluation import Relevance, both_ways

BARE_BLOCKS = ((1024, 4096), (4096, 4096), (8192, 8192))


def inputs(rows: int, dim: int, kind: str) -> tuple[Tensor, Tensor]:
    """Queries and gallery; of `matched` pairs, row n of one belongs to row n of the other."""
    random = torch.Generator().manual_seed(0)
    queries, gallery = torch.empty(rows, dim), torch.empty(rows, dim)
    for start in range(0, rows, 4096):  # in pieces, so that making them leaves no mark on the memory measured
        part = slice(start, min(start + 4096, rows))
        q = F.normalize(torch.randn(part.stop - start, dim, generator=random), dim=1)
        other = torch.randn(part.stop - start, dim, generator=random)
        queries[part] = q
        gallery[part] = F.normalize(q + 0.2 * other if kind == "matched" else other, dim=1)
    return queries, gallery


def bare_product(queries: Tensor, gallery: Tensor, block: tuple[int, int]) -> None:
    out = torch.empty(block)
    for row in range(0, len(queries), block[0]):
        for column in range(0, len(gallery), block[1]):
            q, g = queries[row : row + block[0]], gallery[column : column + block[1]]
            torch.mm(q, g.T, out=out[: len(q), : len(g)])


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_time(rows: int, dim: int, kind: str, rounds: int) -> dict[str, Any]:
    queries, gallery = inputs(rows, dim, kind)
    relevance = Relevance.from_products(range(rows), range(rows))
    sample = min(rows, 16384)
    trials = {
        b: [seconds(lambda b=b: bare_product(queries[:sample], gallery[:sample], b)) for _ in range(3)]
        for b in BARE_BLOCKS
    }
    block = min(trials, key=lambda b: min(trials[b]))
    bare, ranks = [], []
    for _ in range(rounds):
        bare.append(seconds(lambda: bare_product(queries, gallery, block)))
        ranks.append(seconds(lambda: both_ways(queries, gallery, relevance)))
    return {"bare_block": block, "bare_seconds": bare, "ranks_seconds": ranks}


def measure_memory(rows: int, dim: int, kind: str) -> dict[str, Any]:
    """Peak memory, and whether ranks of a sample of queries agree with float64 scores, rounded to float32."""
    queries, gallery = inputs(rows, dim, kind)
    relevance = Relevance.from_products(range(rows), range(rows))
    bare_product(queries[:1024], gallery[:1024], (1024, 1024))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    forward, backward = both_ways(queries, gallery, relevance)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sample = range(0, rows, max(1, rows // 100))
    wrong = 0
    for ranks, left, right in ((forward, queries, gallery), (backward, gallery, queries)):
        for n in sample:
            scores = torch.cat([(part.double() @ left[n].double()).float() for part in right.split(8192)])
            wrong += int((scores > scores[n]).sum()) != ranks.above[n]
    return {
        "extra_mib": (peak - resident) / 2**20,
        "recall@10": [float((r.expected <= 10).mean()) for r in (forward, backward)],
        "checked": 2 * len(sample),
        "wrong": int(wrong),
    }


def in_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="evaluation", help="name of the result files")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, *arguments = json.loads(options.measure)
        print(json.dumps(globals()[f"measure_{what}"](*arguments)))
        return
    values, rows = {}, []
    for kind in ("matched", "unrelated"):
        timed = in_process("time", options.rows, options.dim, kind, options.rounds)
        found = timed | in_process("memory", options.rows, options.dim, kind)
        ratios = [r / b for r, b in zip(found["ranks_seconds"], found["bare_seconds"], strict=True)]
        values[kind] = found | {"ratios": ratios}
        rows.append(
            [
                kind,
                f"{median(found['bare_seconds']):.1f} s",
                f"{median(found['ranks_seconds']):.1f} s",
                spread(ratios),
                f"{found['extra_mib']:.0f} MiB",
                f"{found['recall@10'][0]:.3f} / {found['recall@10'][1]:.3f}",
                f"{found['wrong']} of {found['checked']}",
            ]
        )
    header = ["pairs", "bare product", "both-way ranks", "ratio", "memory beyond inputs", "recall@10", "wrong ranks"]
    size = f"{options.rows:,} x {options.rows:,} x {options.dim}"
    save_results(
        options.name,
        title=f"Exact both-way ranks, {size}, float32, {torch.get_num_threads()} threads",
        tables=[(header, rows)],
        values=values | {"rows": options.rows, "dim": options.dim, "rounds": options.rounds},
        notes=f"{counted(options.rounds, 'round')}. "
        "Wrong ranks: of a sample of queries in both directions, against scores in float64, one query at a time.",
    )


if __name__ == "__main__":
    main()
