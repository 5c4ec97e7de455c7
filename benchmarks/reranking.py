"""What a cross-attention re-ranker gains on the KAGL queries, and what it costs, for several depths N.

    python benchmarks/reranking.py --source FOLDER --base BASE --model RERANKER [--control MODEL]

BASE is the dual tower that the re-ranker was trained on (recipes/train_reranker.py --base BASE); the control is the
same base whose towers alone were trained on for the time that the re-ranker took.

Gains are paired differences on the same queries. The milliseconds are those of one query at a time on all cores, with
the candidates' tokens computed beforehand, as a catalogue would hold them; what computing them costs stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from common import save_results

from dualtower import DualTower, evaluate, load_card, load_products
from dualtower.encoding import evaluation_mode
from dualtower.evaluation import Evaluation, compare, load_qrels, rerank
from dualtower.fusion.reranker import TokenStates
from dualtower.reranking import image_states, reranker_of, text_states

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
METRICS = ("recall@1", "recall@10", "mrr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products and kagl_text_to_image.json")
    parser.add_argument("--base", required=True, help="the dual tower")
    parser.add_argument("--model", required=True, help="the same with a re-ranker")
    parser.add_argument("--control", help="the dual tower trained on for as long")
    parser.add_argument("--top", type=int, nargs="+", default=[10, 20, 50, 100])
    args = parser.parse_args()

    gallery = load_products(load_card(CARD), "all", source=args.source, check_images=False)
    queries = load_qrels(Path(args.source) / "kagl_text_to_image.json")
    base = evaluate(DualTower.from_pretrained(args.base), gallery, queries=queries)
    model = DualTower.from_pretrained(args.model)
    towers = evaluate(model, gallery, queries=queries)
    rows = [["towers of the base", "", *figures(base), "", ""]]
    values: dict[str, object] = {"base": base.report.to_dict()}
    if args.control:
        control = evaluate(DualTower.from_pretrained(args.control), gallery, queries=queries)
        rows.append(["control: towers trained on", "", *figures(control), *gains(base, control), ""])
        values["control"] = control.report.to_dict()
    per_query, tokens = milliseconds(model, towers, args.top)
    for top in args.top:
        again = rerank(model, towers, top=top, directions=["text_to_image"])
        after = Evaluation(again.report, again.directions, {}, gallery)
        only = Evaluation(base.report, {"text_to_image": base.directions["text_to_image"]}, {}, gallery)
        rows.append([f"best {top} re-ranked", f"{top}", *figures(after), *gains(only, after), f"{per_query[top]:.1f}"])
        values[f"top {top}"] = {**again.to_dict(), "milliseconds": per_query[top]}
    save_results(
        "reranking",
        title="Re-ranking on the KAGL queries, text to image",
        tables=[(["what", "N", *METRICS, "gain in recall@1", "gain in MRR", "ms per query"], rows)],
        values=values,
        notes=f"Tokens of one candidate that no catalogue holds yet: {tokens:.2f} ms.",
    )


def figures(result: Evaluation) -> list[str]:
    """Text to image with intervals."""
    found = result.report.metrics["text_to_image"]
    return [f"{found[m].value:.3f} ({found[m].low:.3f}–{found[m].high:.3f})" for m in METRICS]


def gains(first: Evaluation, second: Evaluation) -> list[str]:
    """Paired differences, absolute with their interval and relative."""
    found = compare(first, second)["text_to_image"]
    before = first.report.metrics["text_to_image"]
    return [
        f"{found[m].value:+.3f} ({found[m].low:+.3f} to {found[m].high:+.3f}), {found[m].value / before[m].value:+.0%}"
        for m in ("recall@1", "mrr")
    ]


def milliseconds(model: DualTower, result: Evaluation, tops: list[int], queries: int = 60) -> tuple[dict, float]:
    """Median time of re-ranking one query's best N, and of the tokens of one candidate."""
    direction = result.directions["text_to_image"]
    chosen = np.random.default_rng(0).choice(direction.ranks.judged, queries, replace=False)
    hits = direction.top_hits(chosen, k=max(tops))
    reranker = reranker_of(model)
    times: dict[int, list[float]] = {top: [] for top in tops}
    of_tokens = []
    with evaluation_mode(model):
        for query, positions in zip(chosen, hits, strict=True):
            pictures = [(int(i), result.products.pictures[int(direction.gallery.rows[i])]) for i in positions]
            began = time.perf_counter()
            candidates = image_states(model, pictures)
            of_tokens.append((time.perf_counter() - began) / len(pictures))
            for top in tops:
                began = time.perf_counter()
                text = text_states(model, [direction.queries.texts[query]])
                rows = torch.zeros(top, dtype=torch.int64)
                reranker(text.take(rows), TokenStates(candidates.tokens[:top], None)).argsort(descending=True)
                times[top].append(time.perf_counter() - began)
    return {top: 1000 * statistics.median(t) for top, t in times.items()}, 1000 * statistics.median(of_tokens)


if __name__ == "__main__":
    main()
