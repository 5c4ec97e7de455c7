"""Metrics against hand-written values, against all orders of tied items, and against scikit-learn."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dualtower.errors import ConfigError
from dualtower.evaluation import Ranks, Relevance, chance_levels, metric_names, per_query, retrieval_ranks

KS = (1, 3, 5)


def ranks_of(scores: np.ndarray, relevance: Relevance) -> Ranks:
    scores = np.asarray(scores, np.float32)
    return retrieval_ranks(scores, np.eye(scores.shape[1]), relevance, similarity="dot")


def metrics_of_order(grades: list[float], ks: tuple[int, ...] = KS) -> dict[str, float]:
    """All metrics of one ranked list, by their definitions."""
    places = [i for i, grade in enumerate(grades, 1) if grade > 0]
    total = len(places)
    values = {f"recall@{k}": sum(p <= k for p in places) / total for k in ks}
    values |= {f"hit@{k}": float(any(p <= k for p in places)) for k in ks}
    values["mrr"] = 1 / places[0]
    values["mrr@10"] = 1 / places[0] if places[0] <= 10 else 0.0
    ideal = sorted(grades, reverse=True)
    gains = [sum(g / np.log2(i + 1) for i, g in enumerate(x[:10], 1)) for x in (grades, ideal)]
    values["ndcg@10"] = gains[0] / gains[1]
    values["map"] = sum((n + 1) / p for n, p in enumerate(places)) / total
    values["median_rank"] = places[0]
    return values


def over_all_orders(scores: np.ndarray, grades: np.ndarray) -> list[dict[str, float]]:
    """Metrics of every order that agrees with the scores."""
    groups = [np.flatnonzero(scores == s) for s in sorted(set(scores.tolist()), reverse=True)]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    return [metrics_of_order([grades[i] for part in order for i in part]) for order in orders]


def random_case(seed: int, gallery: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 3, gallery).astype(float)
    grades = random.integers(0, 4, gallery) * (random.random(gallery) < 0.6)
    grades[random.integers(gallery)] = 2
    return scores, grades.astype(float)


@pytest.mark.parametrize("seed", range(12))
def test_expectation_and_bounds_over_all_orders_of_tied_items(seed):
    scores, grades = random_case(seed)
    catalog_items = np.flatnonzero(grades)
    relevance = Relevance.from_pairs(
        np.zeros(len(catalog_items), int), catalog_items, grades[catalog_items], shape=(1, len(grades))
    )
    ranks = ranks_of(scores[None], relevance)
    orders = over_all_orders(scores, grades)
    rules = {rule: per_query(ranks, ks=KS, ties=rule) for rule in ("expected", "optimistic", "pessimistic")}
    for name in metric_names(KS):
        values = [order[name] for order in orders]
        assert rules["expected"][name][0] == pytest.approx(np.mean(values), abs=1e-12), name
        low, high = sorted((rules["optimistic"][name][0], rules["pessimistic"][name][0]))
        assert (low, high) == pytest.approx((min(values), max(values)), abs=1e-12), name


@pytest.mark.parametrize("relevant", [1, 2, 5])
@pytest.mark.parametrize("above", [0, 6, 9, 10, 30])
def test_mrr_at_10_of_ties_that_straddle_place_10(above, relevant):
    """Below place 10 nothing counts: the mean over random orders of a group of eight ties that begins anywhere."""
    scores = np.concatenate([np.full(above, 2.0), np.ones(8), np.zeros(3)])
    catalog_items = above + np.arange(relevant)
    ranks = ranks_of(scores[None], Relevance.from_pairs([0] * relevant, catalog_items, shape=(1, len(scores))))
    chosen = itertools.combinations(range(above + 1, above + 9), relevant)  # places of the relevant ones
    expected = np.mean([1 / min(places) if min(places) <= 10 else 0 for places in chosen])
    assert per_query(ranks)["mrr@10"][0] == pytest.approx(expected, abs=1e-12)


def test_hand_written_values():
    scores = [[0.9, 0.8, 0.7, 0.6], [0.4, 0.3, 0.2, 0.1]]
    ranks = ranks_of(scores, Relevance.from_pairs([0, 0, 1], [1, 3, 0], shape=(2, 4)))
    values = per_query(ranks, ks=(1, 2))
    assert values["recall@1"].tolist() == [0, 1]
    assert values["hit@1"].tolist() == [0, 1]
    assert values["recall@2"].tolist() == [0.5, 1]
    assert values["hit@2"].tolist() == [1, 1]
    assert values["mrr"].tolist() == [0.5, 1]
    assert values["map"].tolist() == [0.5, 1]
    assert values["median_rank"].tolist() == [2, 1]
    ideal = 1 + 1 / np.log2(3)
    assert values["ndcg@10"][0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / ideal)


def test_graded_gain_equals_scikit_learn_without_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores = np.stack([random.permutation(50) for _ in range(40)]).astype(float)
    grades = random.integers(0, 5, (40, 50)) * (random.random((40, 50)) < 0.4)
    q, g = np.nonzero(grades)
    values = per_query(ranks_of(scores, Relevance.from_pairs(q, g, grades[q, g], shape=grades.shape)))
    expected = [metrics.ndcg_score(grades[i : i + 1], scores[i : i + 1], k=10) for i in range(40)]
    assert values["ndcg@10"] == pytest.approx(expected)
    precision = [metrics.average_precision_score(grades[i] > 0, scores[i]) for i in range(40)]
    assert values["map"] == pytest.approx(precision)


def test_equal_scores_give_the_chance_level():
    random = np.random.default_rng(1)
    q, g = np.nonzero(random.random((20, 60)) < 0.08)
    relevance = Relevance.from_pairs(q, g, random.integers(1, 4, len(q)), shape=(20, 60))
    equal = ranks_of(np.ones((20, 60)), relevance)
    chance = chance_levels(ranks_of(random.normal(size=(20, 60)), relevance))
    for name, values in per_query(equal).items():
        if name != "median_rank":
            assert np.mean(values) == pytest.approx(chance[name]), name
    single = Relevance.from_pairs(range(20), range(20), shape=(20, 60))
    chance = chance_levels(ranks_of(random.normal(size=(20, 60)), single))
    assert chance["recall@10"] == pytest.approx(10 / 60)
    assert chance["hit@10"] == pytest.approx(10 / 60)
    assert chance["mrr"] == pytest.approx((1 / np.arange(1, 61)).mean())
    assert chance["median_rank"] == 30.5


def test_chance_level_equals_the_mean_over_random_orders():
    random = np.random.default_rng(2)
    relevance = Relevance.from_pairs([0] * 7, range(7), [3, 1, 1, 2, 1, 1, 1], shape=(1, 40))
    grades = np.concatenate([relevance.grades, np.zeros(33)])
    drawn = [metrics_of_order(random.permutation(grades).tolist(), (1, 5, 10)) for _ in range(4000)]
    chance = chance_levels(ranks_of(np.ones((1, 40)), relevance))
    for name, value in chance.items():
        center = np.median if name == "median_rank" else np.mean
        assert value == pytest.approx(center([d[name] for d in drawn]), rel=0.06), name


def test_chance_median_rank_of_queries_with_one_and_with_many_relevant_items():
    random = np.random.default_rng(3)
    counts = random.integers(1, 9, 400)
    catalog_items = [random.choice(90, count, replace=False) for count in counts]
    relevance = Relevance.from_pairs(np.repeat(range(400), counts), np.concatenate(catalog_items), shape=(400, 90))
    drawn = [np.median([random.permutation(90)[:count].min() + 1 for count in counts]) for _ in range(60)]
    chance = chance_levels(ranks_of(random.normal(size=(400, 90)), relevance))
    assert chance["median_rank"] == pytest.approx(np.mean(drawn), abs=0.75)  # ranks are whole numbers


def test_metrics_survive_a_large_group_of_ties():
    relevance = Relevance.from_pairs([0] * 50, range(50), shape=(1, 100_000))
    ranks = ranks_of(np.zeros((1, 8)), Relevance.from_pairs([0] * 5, range(5), shape=(1, 8)))
    big = replace(
        ranks,
        starts=relevance.starts,
        items=relevance.items,
        grades=relevance.grades,
        above=np.zeros(50, np.int64),
        tied=np.full(50, 99_999),
        scores=np.zeros(50, np.float32),
        gallery_sizes=np.array([100_000]),
    )
    values = per_query(big)
    assert values["hit@1"][0] == pytest.approx(50 / 100_000)
    assert values["median_rank"][0] == pytest.approx(100_001 / 51)
    assert values["mrr"][0] == pytest.approx(5e-4 * np.log(1 / 5e-4), rel=0.01)  # nearly geometric
    assert values["map"][0] == pytest.approx(0.0006, rel=0.1)


def test_cut_offs_are_checked():
    ranks = ranks_of(np.ones((1, 3)), Relevance.from_pairs([0], [0], shape=(1, 3)))
    with pytest.raises(ConfigError, match="each at least 1"):
        per_query(ranks, ks=(0, 5))
    with pytest.raises(ConfigError, match="no rule for ties 'average'"):
        per_query(ranks, ties="average")
