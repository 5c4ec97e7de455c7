"""Search over a catalog against the bare minimum: embed one query, and ask faiss's quickest index.

    python benchmarks/search.py --catalog shop.catalog                                # made by `dualtower index`
    python benchmarks/search.py --catalog shop.catalog --rows 10000 100000 1000000    # real vectors, perturbed

The first form takes catalogs as they are, such as those of a light and of a heavy text tower. Every query is a title
of the catalog that is typed in: ours goes the whole way, from words to hits with their rows; the bare one is
`encode_text` plus the quickest faiss index that reaches recall@10 of 0.98 on the same queries (flat, IVF, IVF+SQ8,
HNSW, tried over their effort). The two take turns.

The second form multiplies the catalog's vectors: each new one is a real vector plus the difference of two others that
are near it, so that it stays on the data's manifold, as isotropic noise would not. For every size it measures, in a
fresh process, start, memory, latency and recall@10 at filters that leave 100 %, 10 %, 1 % and 0.1 % of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import save_results

from dualtower.models.dual_tower import DualTower
from dualtower.search.engine import SearchEngine, SearchRequest
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.store import LocalStore
from dualtower.search.queries import Query
from dualtower.search.records import CatalogInfo, EmbeddedItem

SHARES = (1.0, 0.1, 0.01, 0.001)
LARGE = ["rows", "left by the filter", "recall@10", "p50", "p99", "open", "memory / float16 vectors", "index built in"]
"""Columns of the second form's table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", type=Path, nargs="+", required=True)
    parser.add_argument("--rows", type=int, nargs="+", help="multiply the vectors to so many rows")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--out", type=Path, help="folder for the multiplied catalogs, kept for the next time")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.catalog[0], args.queries)))
    elif args.rows:
        large(args)
    else:
        against_faiss(args.catalog, args.queries)


def against_faiss(catalogs: Sequence[Path], number: int) -> None:
    """Whole search against embedding and index alone."""
    rows, values = [], {}
    for folder in catalogs:
        about, taken = whole_searches(folder, number)
        for what in (50, 99):
            found = {side: float(np.percentile(ms, what)) for side, ms in taken.items()}
            cells = [f"{ms:.2f} ms" for ms in found.values()]
            rows.append([about["tower"], f"p{what}", *cells, f"{found['dualtower'] / found['bare']:.2f}"])
            about[f"p{what}_ms"] = found
        values[folder.name] = about
    save_results(
        "search",
        title="One query: the whole search against `encode_text` and faiss's quickest index",
        tables=[(["text tower", "", "dualtower", "bare", "encoding in it", "ratio"], rows)],
        values=values,
    )


def whole_searches(folder: Path, number: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What is searched, and the milliseconds of every search, of the bare one, and of the encoding in that."""
    store = LocalStore(folder)
    engine = SearchEngine(store, DualTower.from_pretrained(store.info.model))
    view = store.searcher.views.current()
    vectors = view.vectors["image"].run(0, view.state.next_slot).astype(np.float32)
    chosen = view.numbers[np.random.default_rng(0).permutation(view.everything["text"].slots)[:number]].tolist()
    rows = store.catalog.at(chosen)
    titles = [rows[version].title for version in chosen]
    name, bare = quickest(vectors, engine.model.encode_text(titles))
    taken: dict[str, list[float]] = {"dualtower": [], "bare": [], "encoding": []}
    for title in titles[:20]:
        engine.find(SearchRequest(text=title))
    half = len(titles) // 2
    for title, other in zip(titles, titles[half:] + titles[:half], strict=True):  # each its own
        begin = time.perf_counter()
        engine.find(SearchRequest(text=title))
        found = time.perf_counter()
        vector = engine.model.encode_text([other])
        encoded = time.perf_counter()
        bare.search(vector, 10)
        end = time.perf_counter()
        taken["dualtower"].append(1000 * (found - begin))
        taken["bare"].append(1000 * (end - found))
        taken["encoding"].append(1000 * (encoded - found))
    text = engine.model.config.text
    depth = f"{text.name}, {text.layers} layers of {text.width}" if text.name == "bert" else text.name
    return {"tower": depth, "rows": len(vectors), "faiss": name}, taken


def quickest(vectors: np.ndarray, queries: np.ndarray, recall: float = 0.98) -> tuple[str, object]:
    """faiss's quickest index, single queries, at a recall@10 on these queries."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    truth = flat.search(queries, 10)[0][:, -1:] - 1e-6
    best: tuple[float, str, object] = (_each(flat, queries), "Flat", flat)
    lists = round(4 * np.sqrt(len(vectors)))
    for factory, knob, values in [
        ("SQfp16", None, [0]),
        (f"IVF{lists},Flat", "nprobe", [4, 8, 16, 24, 32, 48, 64, 96]),
        (f"IVF{lists},SQ8", "nprobe", [4, 8, 16, 24, 32, 48, 64, 96]),
        ("HNSW32,Flat", "efSearch", [16, 32, 64, 128, 256]),
    ]:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        for value in values:
            if knob:
                faiss.ParameterSpace().set_index_parameter(index, knob, value)
            found = index.search(queries, 10)[1]
            exact = np.einsum("qkd,qd->qk", vectors[found], queries)
            if (exact >= truth).mean() >= recall:
                best = min(best, (_each(index, queries), f"{factory} {knob or ''}={value}", index), key=lambda b: b[0])
                break
    return best[1], best[2]


def _each(index, queries: np.ndarray) -> float:
    begin = time.perf_counter()
    for query in queries:
        index.search(query[None], 10)
    return time.perf_counter() - begin


def large(args: argparse.Namespace) -> None:
    """Multiply, index, and measure each size in a fresh process."""
    rows, values = [], {}
    for size in args.rows:
        folder = (args.out or Path(tempfile.mkdtemp())) / str(size)
        built = None
        if not (folder / "cache" / "view.npz").exists():
            shutil.rmtree(folder, ignore_errors=True)
            multiply(LocalStore(args.catalog[0]), folder, size)
            begin = time.perf_counter()
            LocalStore(folder).rebuild(methods={"text": "flat"})
            built = time.perf_counter() - begin
        own = [sys.executable, __file__, "--catalog", str(folder), "--queries", str(args.queries), "--measure"]
        output = subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        values[str(size)] = {**found, "built_s": built}
        for share, of_share in found["shares"].items():
            recall, p50, p99 = of_share["recall"], of_share["p50_ms"], of_share["p99_ms"]
            cells = [f"{size:,}", f"{float(share):.1%}", f"{recall:.3f}", f"{p50:.1f} ms", f"{p99:.1f} ms"]
            cells += [f"{found['open_s']:.2f} s", f"{found['memory']:.2f}"]
            rows.append([*cells, "" if built is None else f"{built:.1f} s"])
    save_results(
        "search_large",
        title="Search over real vectors, multiplied",
        tables=[(LARGE, rows)],
        values=values,
    )


def multiply(small: LocalStore, folder: Path, rows: int, seed: int = 0) -> None:
    """A catalog of `rows` rows whose images' vectors are like those of a small one."""
    generator = np.random.default_rng(seed)
    view = small.searcher.views.current()
    real = view.vectors["image"].gather(view.everything["image"].slots).astype(np.float32)
    texts = view.vectors["text"].gather(view.everything["text"].slots).astype(np.float32)
    _, near = faiss.knn(real, real, 11, metric=faiss.METRIC_INNER_PRODUCT)
    info = CatalogInfo("none", "none", real.shape[1], ("image", "text"), {"draw": "number"})
    catalog = Catalog.create(folder, info)
    for start in range(0, rows, 20_000):
        count = min(20_000, rows - start)
        chosen = generator.integers(0, len(real), count)
        one, other = (near[chosen, generator.integers(1, 11, count)] for _ in range(2))
        made = real[chosen] + (real[one] - real[other]) * generator.random((count, 1), np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        draws = generator.random(count)
        catalog.upsert(
            [
                EmbeddedItem(
                    str(start + i),
                    str(start + i),
                    f"row {start + i}",
                    {"draw": float(draws[i])},
                    {"image": made[i]} | ({"text": texts[start + i]} if start + i < min(len(texts), 2000) else {}),
                )
                for i in range(count)
            ]
        )


def measure(folder: Path, number: int) -> dict[str, Any]:
    """Start, memory, latency, recall."""
    base = resident()
    begin = time.perf_counter()
    store = LocalStore(folder)
    view = store.searcher.views.current()
    texts = view.vectors["text"].gather(view.everything["text"].slots[:number]).astype(np.float32)
    store.search(Query(texts[0], "image"))
    opened = time.perf_counter() - begin
    selectivities: dict[str, dict[str, float]] = {}
    memory = 0.0
    for share in SHARES:
        where = "" if share == 1 else f"draw < {share}"
        taken, hits = [], []
        for vector in texts:
            begin = time.perf_counter()
            page = store.search(Query(vector, "image", where, group_by_product=False))
            taken.append(1000 * (time.perf_counter() - begin))
            hits.append([hit.score for hit in page.hits])
        memory = max(memory, resident() - base)
        truth = exact(store, texts, where)
        recall = float(np.mean([np.mean(np.array(h) >= t - 1e-5) for h, t in zip(hits, truth, strict=True)]))
        p50, p99 = np.percentile(taken, [50, 99]).tolist()
        selectivities[str(share)] = {"recall": recall, "p50_ms": p50, "p99_ms": p99}
    vectors = view.state.next_slot * store.info.dim * 2 / 2**20
    return {"open_s": opened, "memory": memory / vectors, "shares": selectivities}


def exact(store: LocalStore, queries: np.ndarray, where: str) -> np.ndarray:
    """Score of the tenth best row of every query."""
    from dualtower.search.ann.tuning import _exact
    from dualtower.search.filters import parse_filter
    from dualtower.search.records import attribute_types

    view = store.searcher.views.current()
    part = parse_filter(where, attribute_types(store.info)) if where else None
    return _exact(view, "image", queries, view.selection("image", part))


def resident() -> float:
    """Mebibytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
