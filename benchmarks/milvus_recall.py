"""Recall of the index that Milvus chose for a catalog, against exact search over the same vectors.

    dualtower index MODEL CARD --out milvus:shop.db/shop
    python benchmarks/milvus_recall.py milvus:shop.db/shop

Vectors of all kinds are sent against those of each kind, as `dualtower tune` does on disk: titles against images,
images against images. A hit counts if it scores as well as the K-th best row. Milvus Lite and a cluster choose
other indexes (AUTOINDEX), and a cluster none before it has sealed a segment: measure where you serve, when all is in.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import save_results

from dualtower.errors import DualTowerError
from dualtower.search.milvus.store import MilvusStore
from dualtower.search.queries import Query
from dualtower.topk import largest

HEADER = ("queries", "target", "rows", "recall", "lowest", "p50 ms", "p99 ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="milvus://host:port/name or milvus:FILE.db/name")
    parser.add_argument("--queries", type=int, default=300, help="vectors of each kind that are sent")
    parser.add_argument("--k", type=int, default=10, help="hits that are looked at")
    args = parser.parse_args()
    store = MilvusStore.open(args.address)
    measured = measure(store, queries=args.queries, k=args.k)
    rows = [[str(one[name]) for name in HEADER] for one in measured]
    save_results(
        "milvus_recall", title=f"Recall@{args.k} of Milvus", tables=[(HEADER, rows)], values={"rows": measured}
    )


def measure(store: MilvusStore, *, queries: int, k: int) -> list[dict[str, Any]]:
    """Recall and latency of every kind of query against every kind of vectors."""
    sampled = {kind: sample(store, kind, queries) for kind in store.info.vector_names}
    measured = []
    for against in store.info.vector_names:
        for kind, vectors in sampled.items():
            if not len(vectors):
                continue
            rows, least = exact(store, against, vectors, k)
            recalls, taken = searched(store, against, vectors, least, min(k, rows))
            p50, p99 = (round(float(value), 2) for value in np.percentile(taken, [50, 99]))
            figures = (kind, against, rows, round(float(recalls.mean()), 4), round(float(recalls.min()), 2), p50, p99)
            measured.append(dict(zip(HEADER, figures, strict=True)))
    return measured


def sample(store: MilvusStore, kind: str, number: int) -> np.ndarray:
    """Vectors of some rows, float32 ``[<= number, D]``, each row as likely as any other."""
    dice = np.random.default_rng(0)
    kept, keys = np.empty((0, store.info.dim), np.float32), np.empty(0)
    for _, vectors in store.vectors(kind):
        kept, keys = np.concatenate([kept, vectors]), np.concatenate([keys, dice.random(len(vectors))])
        least = np.argsort(keys)[:number]
        kept, keys = kept[least], keys[least]
    return kept


def exact(store: MilvusStore, kind: str, queries: np.ndarray, k: int) -> tuple[int, np.ndarray]:
    """Number of rows, and the score of the k-th best row of each query, ``[Q]``; -inf where there are fewer."""
    rows, best = 0, np.full((len(queries), k), -np.inf, np.float32)
    for _, vectors in store.vectors(kind):
        rows += len(vectors)
        best = largest(queries @ vectors.T, k, best)
    return rows, best[:, -1]


def searched(
    store: MilvusStore, kind: str, queries: np.ndarray, least: Sequence[float] | np.ndarray, k: int
) -> tuple[np.ndarray, list[float]]:
    """For each query the share of `k` hits that score `least` or more, and the milliseconds of its search."""
    recalls, taken = [], []
    for vector, score in zip(queries, least, strict=True):
        begin = time.perf_counter()
        (page,) = store.search_many([Query(vector, kind, limit=k, group_by_product=False)])
        taken.append(1000 * (time.perf_counter() - begin))
        if isinstance(page, DualTowerError):
            raise page
        recalls.append(sum(hit.score >= score - 1e-5 for hit in page.hits) / k)
    return np.array(recalls), taken


if __name__ == "__main__":
    main()
