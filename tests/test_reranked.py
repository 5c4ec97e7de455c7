"""Re-ranked evaluation against sorting by hand, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import factories
import numpy as np
import pytest
import torch

from dualtower import RerankerConfig
from dualtower.data.items import ItemDataset
from dualtower.errors import ConfigError
from dualtower.evaluation import Ranks, choose_weight, evaluate, rerank
from dualtower.evaluation.reranked import WEIGHTS, _reranked
from dualtower.inference.pair_scoring import score_pairs
from dualtower.types import Item


def catalog(rows: int = 12) -> ItemDataset:
    """Every product in two rows."""
    items = [
        Item(str(i), str(i % 6), (factories.TITLES[i % 6],), factories.png(factories.photo(i))) for i in range(rows)
    ]
    return ItemDataset.from_rows(items)


def model(*, trained: bool = True, seed: int = 0):
    built = factories.model(reranker=RerankerConfig(layers=1, width=16, heads=2))
    if trained:
        torch.manual_seed(seed)
        torch.nn.init.normal_(built.reranker.score[-1].weight, std=5)
        built.reranker.weight.fill_(1.0)
    return built


def by_hand(built, result, name: str, top: int) -> dict[tuple[int, int], int]:
    """(query, relevant item) -> rank, by plain sorting."""
    direction = result.directions[name]
    queries, gallery = direction.queries, direction.gallery
    photos = [result.items.images[i] for i in range(len(result.items))]
    scores = built.scale * queries.embeddings @ gallery.embeddings.T
    ranks = {}
    for q in range(len(queries.rows)):
        order = np.argsort(-scores[q], kind="stable")
        pairs = [(q, i) if queries.texts else (i, q) for i in order[:top]]
        texts = queries.texts or gallery.texts
        new = scores[q, order[:top]] + score_pairs(built, texts, photos, np.array(pairs))
        final = [*order[:top][np.argsort(-new, kind="stable")], *order[top:]]
        ranks |= {(q, int(i)): final.index(i) + 1 for i in direction.relevant_to(q)}
    return ranks


@pytest.mark.parametrize("name", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("top", [1, 4, 6])
def test_ranks_equal_those_of_plain_sorting(name: str, top: int) -> None:
    built = model()
    result = evaluate(built, catalog(), bootstrap=0)
    again = rerank(built, result, top=top, bootstrap=10)
    ranks = again.directions[name].ranks
    found = {(int(q), int(i)): int(r) for q, i, r in zip(ranks.queries, ranks.items, ranks.optimistic, strict=True)}
    assert (ranks.tied == 0).all()
    assert found == by_hand(built, result, name, top)
    figures = again.to_dict()
    assert figures["top"] == top and figures["protocol"]["reranked"] == top
    before, after = (r.metrics[name]["mrr"].value for r in (result.report, again.report))
    assert figures["gain"][name]["mrr"]["value"] == pytest.approx(after - before)
    assert again.milliseconds[name] > 0 and "ms" in again.table()


def test_a_fresh_reranker_leaves_every_rank() -> None:
    built = model(trained=False)
    result = evaluate(built, catalog(), bootstrap=0)
    again = rerank(built, result, top=5, bootstrap=0)
    for name, direction in again.directions.items():
        np.testing.assert_array_equal(direction.ranks.above, result.directions[name].ranks.above)
        assert again.gain[name]["mrr"].value == 0


def test_scores_that_are_neighbors_stay_apart() -> None:
    """A tenth of neighboring float32 numbers have the same float32 product with a scale."""
    built, items = model(trained=False), catalog()
    scale, near = np.float32(built.scale), [np.float32(0.93)]
    while scale * near[-1] != scale * np.nextafter(near[-1], np.float32(2)):
        near[0] = np.nextafter(near[0], np.float32(2))
    while len(near) < len(items):
        near.append(np.nextafter(near[-1], np.float32(2)))

    class Near:
        config, fingerprint = replace(built.config, similarity="dot"), "near"

        def encode_text(self, texts: list[str], **_: Any) -> np.ndarray:
            return np.ones((len(texts), 1), np.float32)

        def encode_image(self, images: Any, **_: Any) -> np.ndarray:
            return np.array(near, np.float32)[:, None]

    result = evaluate(Near(), items, bootstrap=0)
    again = rerank(built, result, top=len(near), bootstrap=0, directions=("text_to_image",))
    before, after = (r.directions["text_to_image"].ranks for r in (result, again))
    np.testing.assert_array_equal(after.above, before.above)
    np.testing.assert_array_equal(after.tied, before.tied)


def test_the_least_weight_within_one_standard_error_of_the_best_is_chosen() -> None:
    built = model(seed=1)
    result = evaluate(built, catalog(), bootstrap=0)
    found: dict[float, dict[str, np.ndarray]] = {}
    for weight in WEIGHTS:
        built.reranker.weight.fill_(weight)
        again = rerank(built, result, top=6, bootstrap=0)
        found[weight] = {name: direction.per_query["mrr"] for name, direction in again.directions.items()}
    best = max(WEIGHTS, key=lambda w: sum(of.mean() for of in found[w].values()))
    as_good = []
    for weight in WEIGHTS:
        lost = [found[best][name] - of for name, of in found[weight].items()]
        if sum(d.mean() for d in lost) <= np.sqrt(sum(d.var() / len(d) for d in lost)):
            as_good.append(weight)
    assert as_good[0] < best and len(as_good) < len(WEIGHTS), "else this test says little"
    after = choose_weight(built, result, top=6)
    assert float(built.reranker.weight) == pytest.approx(as_good[0])
    assert after == pytest.approx({name: of.mean() for name, of in found[as_good[0]].items()})


def test_a_weight_of_zero_is_kept_where_nothing_is_better() -> None:
    built = model(trained=False)
    with torch.no_grad():  # every pair scores the same
        for head in (built.reranker.text_head, built.reranker.image_head):
            head.layers[-1].weight.zero_()
    result = evaluate(built, catalog(), bootstrap=0)
    choose_weight(built, result, top=6)
    assert float(built.reranker.weight) == 0


def test_more_than_the_gallery_is_refused() -> None:
    built = model()
    result = evaluate(built, catalog(), bootstrap=0)
    with pytest.raises(ConfigError, match="cannot re-rank the best 13 of a gallery of 12; choose 1 to 12"):
        rerank(built, result, top=13)
    with pytest.raises(ConfigError, match="the best 0"):
        rerank(built, result, top=0)
    with pytest.raises(ConfigError, match="no re-ranker"):
        rerank(factories.model(), result, top=2)


def ranks(above: int, tied: int, item: int = 7, gallery: int = 20) -> Ranks:
    one = np.array([1.0])
    return Ranks(np.array([0, 1]), np.array([item]), one, np.array([above]), np.array([tied]), one, np.array([gallery]))


def test_all_equal_scores_still_tie() -> None:
    again = _reranked(ranks(2, 0), np.array([[7, 3, 9]]), np.zeros((1, 3), np.float32))
    assert (again.above[0], again.tied[0]) == (0, 2)


def test_of_ties_that_straddle_the_border_only_those_below_remain() -> None:
    # Places 3 to 6 tie; the best 4 are re-ranked, and ours is not among them: it ends on place 5 or 6.
    again = _reranked(ranks(2, 3), np.array([[1, 2, 3, 4]]), np.zeros((1, 4), np.float32))
    assert (again.above[0], again.tied[0]) == (4, 1)
    untouched = _reranked(ranks(9, 3), np.array([[1, 2, 3, 4]]), np.zeros((1, 4), np.float32))
    assert (untouched.above[0], untouched.tied[0]) == (9, 3)
