r"""What the re-ranker gains in the search that a shop's visitors use: the HTTP API with and without it, and its cost.

    python recipes/train_reranker.py --base runs/fashion/model --data.card data_cards/fashion_products.md \
        --data.source FOLDER --train.minutes 20 --train.batch-size 512 --out runs/fashion_reranker
    python benchmarks/rerank_search.py --source FOLDER --model runs/fashion_reranker/model

All fashion products are indexed (once: the catalog is kept beside the model). A service on loopback is asked the
KAGL queries, one after the other, row by row: first without `--rerank`, then with each depth N. A row that is not among
the best 100 counts as not found, in both. The gains are paired differences on the same queries, with 95 % intervals.

Each request is asked twice. The first time the tokens of many candidates are not in memory yet and have to be computed
from the catalog's images; the second time all are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from common import save_results
from service import serving

from dualtower import DualTower, load_card, load_items
from dualtower.evaluation import load_qrels
from dualtower.evaluation.bootstrap import Difference, Interval, intervals, paired_test
from dualtower.evaluation.qrels import Qrels
from dualtower.search.ingest.embed import attribute_types_of, index_products, open_or_create
from dualtower.search.local.store import LocalStore

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
LIMIT = 100
METRICS = ("recall@1", f"mrr@{LIMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products and kagl_text_to_image.json")
    parser.add_argument("--model", required=True, help="a model with a re-ranker")
    parser.add_argument("--top", type=int, nargs="+", default=[20, 50, 100], help="rows that are re-ranked")
    parser.add_argument("--queries", type=int, default=0, help="the first so many; 0 is all")
    parser.add_argument("--rows", type=int, default=0, help="index so many, evenly spaced; 0 is all")
    args = parser.parse_args()

    catalog = indexed(args.model, args.source, args.rows)
    held = held_ids(catalog)
    asked = judged(load_qrels(Path(args.source) / "kagl_text_to_image.json"), held, args.queries)
    before, plain_ms = answers(catalog, asked, None)
    towers = per_query(asked, before)
    rows = [["towers", "", *values_of(towers), "", "", *plain_ms]]
    values: dict[str, Any] = {"towers": {name: of.tolist() for name, of in towers.items()}, "towers ms": plain_ms}
    for top in args.top:
        found, taken = answers(catalog, asked, top)
        after = per_query(asked, found)
        gains = [paired_test(towers[name], after[name]) for name in METRICS]
        rows.append(["re-ranked", f"{top}", *values_of(after), *map(shown_gain, gains), *taken])
        values[f"top {top}"] = {name: of.tolist() for name, of in after.items()}
        values[f"top {top} ms"] = taken
    gain_names = [f"gain in {name}" for name in METRICS]
    ms_names = ["ms, first time", "ms, tokens in memory"]
    save_results(
        "rerank_search",
        title="Search over HTTP with and without the re-ranker",
        tables=[(["what", "N", *METRICS, *gain_names, *ms_names], rows)],
        values=values,
        notes=f"{len(asked):,} queries over {len(held):,} rows; a row below the "
        f"best {LIMIT} counts as not found. Milliseconds are medians of one question at a time, over HTTP.",
    )


def indexed(model: str, source: str, rows: int) -> Path:
    """A catalog of the products beside the model; what it holds already is not embedded again."""
    folder = Path(model).with_name(f"{Path(model).name}{rows or ''}.catalog")
    items = load_items(load_card(CARD), "all", source=source, check_images=False)
    if rows:
        items = items.select(np.linspace(0, len(items) - 1, rows).astype(int))
    loaded = DualTower.from_pretrained(model)
    store = open_or_create(folder, loaded, name=model, attributes=attribute_types_of(items), card=CARD.stem)
    index_products(store, loaded, items, progress=True)
    if isinstance(store, LocalStore) and store.is_stale():
        store.rebuild()
    store.close()
    return folder


def held_ids(catalog: Path) -> set[str]:
    store = LocalStore(catalog)
    held = set(store.digests())
    store.close()
    return held


def judged(qrels: Qrels, held: set[str], number: int) -> list[tuple[str, set[str]]]:
    """Texts and the ids that answer them; queries of which the catalog holds nothing are left out."""
    found = [
        (text, relevant)
        for text, grades in zip(qrels.texts, qrels.relevant, strict=True)
        if (relevant := held & set(grades))
    ]
    if not found:
        raise SystemExit("no query has an answer in this catalog; leave out --rows")
    return found[:number] if number else found


def answers(
    catalog: Path, asked: Sequence[tuple[str, set[str]]], rerank: int | None
) -> tuple[list[list[str]], list[str]]:
    """Ids that the service finds for each text, and the median milliseconds of asking the first and the second time."""
    with serving(catalog, rerank=rerank) as service:
        connection = HTTPConnection("127.0.0.1", service.port)
        for _ in range(20):
            ask(connection, "something else")
        found, medians = [], []
        for _ in range(2):
            taken = []
            found = []
            for text, _ in asked:
                began = time.perf_counter()
                answer = ask(connection, text)
                taken.append(1000 * (time.perf_counter() - began))
                if rerank is not None and not answer["reranked"]:
                    raise SystemExit(f"{text!r} was not re-ranked")
                found.append([hit["id"] for hit in answer["hits"]])
            medians.append(f"{np.median(taken):.1f}")
        connection.close()
    return found, medians


def ask(connection: HTTPConnection, text: str) -> dict[str, Any]:
    """One request, each row for itself."""
    body = json.dumps({"text": text, "limit": LIMIT, "group_by_product": False})
    connection.request("POST", "/search", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status != 200:
        raise SystemExit(f"{text!r}: {answer.status} {content}")
    return content


def per_query(asked: Sequence[tuple[str, set[str]]], found: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """recall@1, the share of a query's answers that stands first, and the reciprocal rank of its first answer."""
    recall, reciprocal = np.zeros(len(asked)), np.zeros(len(asked))
    for i, ((_, relevant), ids) in enumerate(zip(asked, found, strict=True)):
        places = [place for place, row_id in enumerate(ids) if row_id in relevant]
        recall[i] = (places[:1] == [0]) / len(relevant)
        reciprocal[i] = 1 / (1 + places[0]) if places else 0
    return dict(zip(METRICS, (recall, reciprocal), strict=True))


def values_of(table: Mapping[str, np.ndarray]) -> list[str]:
    found: dict[str, Interval] = intervals(table)
    return [f"{found[name].value:.3f} ({found[name].low:.3f}–{found[name].high:.3f})" for name in METRICS]


def shown_gain(gain: Difference) -> str:
    return f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), p = {gain.p_value:.4f}"


if __name__ == "__main__":
    main()
