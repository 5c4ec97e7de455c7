r"""What a cross-attention re-ranker gains on the KAGL queries, and what it costs, for several depths N.

    python recipes/train_reranker.py --base runs/compare/quality/60_minutes/model \
        --data.card data_cards/fashion_products.md --data.source FOLDER --train.minutes 20 --train.batch-size 512 \
        --train.lr 1e-2 --train.adamw-lr 3e-3 --train.ema 0.995 --train.validate-every 1 \
        --out runs/fashion_reranker
    python benchmarks/reranking.py --source FOLDER --base runs/compare/quality/60_minutes/model \
        --model runs/fashion_reranker/model --control runs/control

The control is the same base whose towers alone are trained on for the time that the re-ranker took; where the folder
holds none, it is trained first. `without attention` is the re-ranker whose cross-attention counts nothing: what is left
is a second opinion on whole texts and images.

Gains are paired differences on the same queries. The milliseconds are those of one query at a time on all cores, with
the candidates' tokens computed beforehand, as a catalog would hold them; what computing them costs stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from common import save_results

from dualtower import DataConfig, DualTower, RunConfig, TrainConfig, evaluate, load_card, load_items
from dualtower.evaluation import Evaluation, compare, load_qrels, rerank
from dualtower.inference.pair_scoring import image_states, reranker_of, text_states
from dualtower.models.encoding import evaluation_mode
from dualtower.training.run import run

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
METRICS = ("recall@1", "recall@10", "mrr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products and kagl_text_to_image.json")
    parser.add_argument("--base", required=True, help="the dual tower")
    parser.add_argument("--model", required=True, help="the same with a re-ranker")
    parser.add_argument("--control", type=Path, help="folder of the run that trains the towers on")
    parser.add_argument("--control-minutes", type=float, default=20, help="what the re-ranker took")
    parser.add_argument("--top", type=int, nargs="+", default=[10, 20, 50, 100])
    args = parser.parse_args()

    gallery = load_items(load_card(CARD), "all", source=args.source, check_images=False)
    queries = load_qrels(Path(args.source) / "kagl_text_to_image.json")
    base = evaluate(DualTower.from_pretrained(args.base), gallery, queries=queries)
    model = DualTower.from_pretrained(args.model)
    towers = evaluate(model, gallery, queries=queries)
    rows = [["towers of the base", "", *figures(base), "", "", ""]]
    values: dict[str, object] = {"base": base.report.to_dict()}
    if args.control:
        if not (args.control / "metrics.json").exists():
            train_on(args.base, args.source, args.control_minutes, args.control)
        control = evaluate(DualTower.from_pretrained(args.control / "model"), gallery, queries=queries)
        rows.append(["control: towers trained on", "", *figures(control), *gains(base, control), ""])
        values["control"] = control.report.to_dict()
    per_query, tokens = milliseconds(model, towers, args.top)
    for top in args.top:
        cells, values[f"top {top}"] = reranked(model, towers, base, top)
        rows.append(["re-ranked", f"{top}", *cells, f"{per_query[top]:.1f}"])
    with torch.no_grad():
        for parameter in reranker_of(model).score[-1].parameters():
            parameter.zero_()
    cells, values["without attention"] = reranked(model, towers, base, 50)
    rows.append(["re-ranked without attention", "50", *cells, ""])
    save_results(
        "reranking",
        title="Re-ranking on the KAGL queries, text to image",
        tables=[(["what", "N", *METRICS, "gain in recall@1", "gain in MRR", "ms per query"], rows)],
        values=values,
        notes=f"Tokens of one candidate that no catalog holds yet: {tokens:.2f} ms.",
    )


def reranked(model: DualTower, towers: Evaluation, base: Evaluation, top: int) -> tuple[list[str], dict]:
    """Figures and gains of the best `top` in their new order."""
    again = rerank(model, towers, top=top, directions=["text_to_image"])
    after = Evaluation(again.report, again.directions, {}, towers.items)
    only = Evaluation(base.report, {"text_to_image": base.directions["text_to_image"]}, {}, base.items)
    return [*figures(after), *gains(only, after)], again.to_dict()


def train_on(base: str, source: str, minutes: float, out: Path) -> None:
    """Train the towers alone, at a tenth of the rates that they began with."""
    data = DataConfig(card=CARD, source=source)
    budget = TrainConfig(
        minutes=minutes,
        batch_size=512,
        optimizer="nmuon",
        lr=1e-3,
        adamw_lr=3e-4,
        ema=0.995,
        token_dropout=0.1,
        weight_decay=0.1,
    )
    run(RunConfig(base=base, data=data, train=budget, out=out, overwrite=True))


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
    hits, _ = direction.top_hits(chosen, k=max(tops))
    reranker = reranker_of(model)
    times: dict[int, list[float]] = {top: [] for top in tops}
    of_tokens = []
    with evaluation_mode(model):
        for query, positions in zip(chosen, hits, strict=True):
            images = [(int(i), direction.gallery.images[int(i)]) for i in positions]
            began = time.perf_counter()
            candidates = image_states(model, images)
            of_tokens.append((time.perf_counter() - began) / len(images))
            for top in tops:
                began = time.perf_counter()
                text = text_states(model, [direction.queries.texts[query]])
                rows = torch.zeros(top, dtype=torch.int64)
                reranker(text.take(rows), candidates.take(torch.arange(top))).argsort(descending=True)
                times[top].append(time.perf_counter() - began)
    return {top: 1000 * statistics.median(t) for top, t in times.items()}, 1000 * statistics.median(of_tokens)


if __name__ == "__main__":
    main()
