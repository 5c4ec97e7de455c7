"""What a re-ranker gains: the same queries with the best N hits of each put in order again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dualtower.errors import ConfigError
from dualtower.evaluation.bootstrap import Difference, intervals, paired_test
from dualtower.evaluation.directions import Direction
from dualtower.evaluation.evaluator import Evaluation
from dualtower.evaluation.metrics import per_query
from dualtower.evaluation.ranks import Ranks
from dualtower.evaluation.reports.report import TITLES, Report, Section, format_interval
from dualtower.evaluation.topk import top_k
from dualtower.inference.pair_scoring import reranker_of, score_pairs
from dualtower.markdown import markdown_table
from dualtower.models.dual_tower import DualTower

__all__ = ["Reranked", "choose_weight", "rerank"]

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
"""Weights to try for the re-ranker's score beside the towers' logit, rising."""

MATCHED = ("text_to_image", "image_to_text")
"""Directions that ask of one text and one image, as a re-ranker does."""


@dataclass(frozen=True, eq=False)
class Reranked:
    """Figures after re-ranking, beside those before.

    Attributes:
        top: Hits of each query that were put in order again.
        report: Figures after it.
        directions: The ways of searching after it.
        gain: Direction -> metric -> mean of after - before, with its interval.
        milliseconds: Direction -> time that it added to a query, towers' tokens of the candidates included.
    """

    top: int
    report: Report
    directions: Mapping[str, Direction]
    gain: Mapping[str, Mapping[str, Difference]]
    milliseconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the report's, ``gain`` like a direction's metrics, and ``milliseconds_per_query``."""
        gain = {
            name: {metric: {"value": d.value, "low": d.low, "high": d.high, "p": d.p_value} for metric, d in of.items()}
            for name, of in self.gain.items()
        }
        return {
            **self.report.to_dict(),
            "top": self.top,
            "gain": gain,
            "milliseconds_per_query": dict(self.milliseconds),
        }

    def table(self) -> str:
        """Markdown: figures after re-ranking and the paired gain, both directions."""
        header, rows = ["metric"], []
        for name in self.gain:
            header += [f"{TITLES[name]}, best {self.top} re-ranked", "gain"]
        for metric in next(iter(self.gain.values())):
            row = [metric]
            for name, gain in self.gain.items():
                row += [
                    format_interval(metric, self.report.metrics[name][metric]),
                    f"{gain[metric].value:+.3f} [{gain[metric].low:+.3f}, {gain[metric].high:+.3f}]",
                ]
            rows.append(row)
        added = ", ".join(f"{TITLES[name]} {ms:.1f} ms" for name, ms in self.milliseconds.items())
        return f"{markdown_table(header, rows)}\n\nadded per query, candidates' tokens included: {added}"

    def section(self) -> Section:
        """Return the section of a run's report."""
        return Section("reranked", f"Best {self.top} re-ranked", self.table(), self.to_dict())


def rerank(
    model: DualTower,
    result: Evaluation,
    *,
    top: int = 50,
    directions: Sequence[str] = MATCHED,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Reranked:
    """Put the best `top` hits of each query in order again and measure the gain.

    Hits below keep their ranks, so no relevant item can enter from there. Items of equal score still tie.

    Args:
        model: With a re-ranker.
        result: Result of `evaluate`, for this very model.
        top: Hits per query.
        directions: Which ways of searching.
        bootstrap: Resamples behind the 95 % intervals.
        seed: Seed of the resamples.
        progress: Show progress bars.

    Raises:
        ConfigError: The model has no re-ranker, or `top` is more than the gallery holds.
    """
    reranker_of(model)
    ks = _cut_offs(result)
    reranked, gain, milliseconds = {}, {}, {}
    for name in directions:
        before = result.directions[name]
        if not 1 <= top <= len(before.gallery.rows):
            raise ConfigError(
                f"{name}: cannot re-rank the best {top} of a gallery of {len(before.gallery.rows)}; "
                f"choose 1 to {len(before.gallery.rows)}"
            )
        began = time.perf_counter()
        positions, logits, corrections = _best(model, result, before, top=top, progress=progress)
        milliseconds[name] = 1000 * (time.perf_counter() - began) / len(before.ranks.judged)
        ranks = _reranked(before.ranks, positions, logits + corrections)
        after = replace(before, ranks=ranks, per_query=per_query(ranks, ks=ks))
        reranked[name] = after
        gain[name] = {
            metric: paired_test(before.per_query[metric], after.per_query[metric], groups=before.groups, seed=seed)
            for metric in after.per_query
        }
    report = Report(
        metrics={
            name: intervals(d.per_query, groups=d.groups, bootstrap=bootstrap, seed=seed)
            for name, d in reranked.items()
        },
        chance={name: result.report.chance[name] for name in reranked},
        protocol={**result.report.protocol, "reranked": top},
    )
    return Reranked(top, report, reranked, gain, milliseconds)


def choose_weight(model: DualTower, result: Evaluation, *, top: int = 20) -> dict[str, float]:
    """Set the weight of the re-ranker's score: the least of `WEIGHTS` that is as good as the best one.

    As good is a mean MRR of the directions that lies within one standard error of the best weight's, by the paired
    differences of the queries (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3): on a small
    split the very best of many weights is often luck. To be called with rows that neither towers nor re-ranker were
    trained on.

    Args:
        model: With a re-ranker, whose weight is changed.
        result: Result of `evaluate`, for this very model.
        top: Hits per query.

    Returns:
        Direction -> MRR with that weight.
    """
    weight = reranker_of(model).weight
    weight.fill_(1.0)
    found: dict[str, np.ndarray] = {}  # reciprocal ranks [weights, queries] of each direction
    for name in MATCHED:
        before = result.directions[name]
        positions, logits, matches = _best(model, result, before, top=top, progress=False)
        ranks = [_reranked(before.ranks, positions, logits + w * matches) for w in WEIGHTS]
        found[name] = np.stack([per_query(r, ks=(1,))["mrr"] for r in ranks])
    best = int(sum(of.mean(axis=1) for of in found.values()).argmax())
    behind = {name: of[best] - of for name, of in found.items()}
    variance = sum(of.var(axis=1) / of.shape[1] for of in behind.values())
    as_good = sum(of.mean(axis=1) for of in behind.values()) <= np.sqrt(variance)
    chosen = int(np.argmax(as_good))  # the first
    weight.fill_(WEIGHTS[chosen])
    return {name: float(of[chosen].mean()) for name, of in found.items()}


def _cut_offs(result: Evaluation) -> list[int]:
    names = next(iter(result.directions.values())).per_query
    return [int(name.removeprefix("recall@")) for name in names if name.startswith("recall@")]


def _best(
    model: DualTower, result: Evaluation, direction: Direction, *, top: int, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of each judged query's best hits, the towers' logits and their corrections: ``[Q_judged, top]``."""
    judged, queries, gallery = direction.ranks.judged, direction.queries, direction.gallery
    positions, similarity = top_k(
        queries.embeddings[judged], gallery.embeddings, k=top, similarity=direction.similarity
    )
    rows, columns = np.repeat(judged, top), positions.flatten()
    if queries.texts is not None:
        assert gallery.images is not None
        pairs = np.stack([rows, columns], axis=1)
        corrections = score_pairs(model, queries.texts, gallery.images, pairs, progress=progress)
    else:
        assert gallery.texts is not None and queries.images is not None
        pairs = np.stack([columns, rows], axis=1)
        corrections = score_pairs(model, gallery.texts, queries.images, pairs, progress=progress)
    # In float64: in float32 the product would make neighboring scores equal, and so move ranks that nothing corrects.
    return positions, model.scale * similarity.astype(np.float64), corrections.reshape(positions.shape)


def _reranked(ranks: Ranks, positions: np.ndarray, scores: np.ndarray) -> Ranks:
    """Ranks of the relevant items when the items at `positions` ``[Q_judged, N]`` compete by new `scores`."""
    top = positions.shape[1]
    line = np.full(len(ranks), -1)
    line[ranks.judged] = np.arange(len(ranks.judged))
    above, tied = ranks.above.copy(), ranks.tied.copy()
    for entry, (query, item) in enumerate(zip(line[ranks.queries], ranks.items, strict=True)):
        (place,) = np.nonzero(positions[query] == item)
        if len(place):
            score = scores[query, place[0]]
            above[entry] = (scores[query] > score).sum()
            tied[entry] = (scores[query] == score).sum() - 1
        else:  # of a group of ties that straddles the border, only those below it still tie
            last = above[entry] + tied[entry]
            above[entry] = max(above[entry], top)
            tied[entry] = last - above[entry]
    return replace(ranks, above=above, tied=tied)
