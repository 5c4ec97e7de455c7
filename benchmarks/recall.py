"""Recall of many models on many catalogs, as one table.

    python benchmarks/recall.py --models runs/a/model user/name --cards synthetic fashion_products=FOLDER \\
        --qrels fashion_products=FOLDER/kagl_text_to_image.json

A card is a file or a name in data_cards/, with ``=SOURCE`` where its rows are read from elsewhere. A card with a
relevance file is searched as a whole with its queries; any other is measured on one split, relevant being the same
product. With two models or more, the last columns hold the paired difference to the first model, with its interval.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import save_results

from dualtower import DualTower, evaluate, load_card, load_items
from dualtower.evaluation import compare, load_qrels
from dualtower.evaluation.reports.report import format_interval

SHOWN = ("recall@1", "recall@10", "mrr@10")
DIRECTIONS = {"text_to_image": "text→image", "image_to_text": "image→text"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="model folders or user/name on the Hub")
    parser.add_argument("--cards", nargs="+", required=True, metavar="CARD[=SOURCE]", help="catalogs")
    parser.add_argument("--qrels", nargs="*", default=[], metavar="CARD=FILE", help="relevance files")
    parser.add_argument("--split", default="test", help="split of the cards without a relevance file")
    args = parser.parse_args()

    qrels = dict(pair.split("=", 1) for pair in args.qrels)
    rows: list[list[str]] = []
    values: dict[str, Any] = {}
    for given in args.cards:
        name, _, source = given.partition("=")
        split = "all" if name in qrels else args.split
        items = load_items(load_card(name), split, source=source or None)
        queries = load_qrels(qrels[name]) if name in qrels else None
        results = {m: evaluate(DualTower.from_pretrained(m), items, queries=queries) for m in args.models}
        for model, result in results.items():
            rows += table_rows(model, f"{name}, {split}", result, results[args.models[0]])
            values[f"{model} on {name}"] = result.report.to_dict()
    header = ["model", "card", "direction", *SHOWN, "recall@10 against the first model"]
    save_results("recall", title="Recall", tables=[(header, rows)], values=values)


def table_rows(model: str, card: str, result: Any, first: Any) -> list[list[str]]:
    """Both directions of one model on one card."""
    rows = []
    for direction, title in DIRECTIONS.items():
        figures = result.report.metrics[direction]
        cells = [format_interval(metric, figures[metric]) for metric in SHOWN]
        gain = "" if result is first else format_gain(compare(first, result)[direction]["recall@10"])
        rows.append([model, card, title, *cells, gain])
    return rows


def format_gain(difference: Any) -> str:
    """``+0.021 [+0.010, +0.032]``."""
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


if __name__ == "__main__":
    main()
