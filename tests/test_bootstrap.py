"""Intervals and paired tests, resampled by product."""

from __future__ import annotations

import numpy as np
import pytest

from dualtower.errors import ConfigError
from dualtower.evaluation import Relevance, breakdown, intervals, paired_test, retrieval_ranks, summarize


def test_interval_of_a_share_is_the_normal_one():
    values = np.repeat([1.0, 0.0], [300, 700])
    figure = intervals({"hit@1": values}, bootstrap=4000)["hit@1"]
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert figure.value == pytest.approx(0.3)
    assert (figure.low, figure.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.003)


def test_queries_of_one_product_count_as_one_draw():
    """100 products of 10 equal queries carry as much information as 100 queries, not as 1,000."""
    one_each = np.repeat([1.0, 0.0], [30, 70])
    groups = np.repeat(np.arange(100), 10)
    naive = intervals({"hit@1": np.repeat(one_each, 10)}, bootstrap=2000)["hit@1"]
    by_product = intervals({"hit@1": np.repeat(one_each, 10)}, groups=groups, bootstrap=2000)["hit@1"]
    single = intervals({"hit@1": one_each}, bootstrap=2000)["hit@1"]
    assert (by_product.low, by_product.high) == (single.low, single.high)
    assert (by_product.high - by_product.low) / (naive.high - naive.low) == pytest.approx(10**0.5, rel=0.1)


def test_intervals_equal_a_loop_over_resamples():
    random = np.random.default_rng(0)
    groups = random.integers(0, 12, 40)
    values = {"mrr": random.random(40), "median_rank": random.integers(1, 30, 40).astype(float)}
    figures = intervals(values, groups=groups, bootstrap=300, seed=7)
    names, numbers = np.unique(groups, return_inverse=True)
    draws = np.random.default_rng(7).integers(0, len(names), (300, len(names)))
    for name, center in (("mrr", np.mean), ("median_rank", np.median)):
        loop = [center(np.concatenate([values[name][numbers == g] for g in draw])) for draw in draws]
        low, high = np.percentile(loop, [2.5, 97.5])
        assert figures[name].value == pytest.approx(center(values[name]))
        assert (figures[name].low, figures[name].high) == pytest.approx((low, high))


def test_seed_and_portions_decide_nothing_else():
    values = {"mrr": np.random.default_rng(0).random(50)}
    assert intervals(values, seed=1) == intervals(values, seed=1)
    assert intervals(values, seed=1) != intervals(values, seed=2)


def test_no_bootstrap_gives_figures_without_interval():
    figure = intervals({"mrr": np.array([0.5, 1.0])}, bootstrap=0)["mrr"]
    assert (figure.value, figure.low, figure.high) == (0.75, None, None)
    with pytest.raises(ConfigError, match="no query has a relevant item"):
        intervals({"mrr": np.array([])})
    with pytest.raises(ConfigError, match="3 groups were given for 2 queries"):
        intervals({"mrr": np.array([0.5, 1.0])}, groups=np.arange(3))


def test_paired_test_finds_a_small_constant_gain():
    random = np.random.default_rng(0)
    first = random.random(400)
    second = first + 0.02 + 0.05 * random.normal(size=400)
    found = paired_test(first, second, resamples=2000)
    assert found.value == pytest.approx((second - first).mean())
    assert found.low is not None and 0 < found.low < 0.02 < found.high
    assert found.p_value == pytest.approx(1 / 2001)
    unpaired = intervals({"a": second - random.permutation(first)}, bootstrap=2000)["a"]
    assert unpaired.low < 0  # without pairing the gain drowns


def test_paired_test_of_equal_models():
    same = np.random.default_rng(0).random(100)
    found = paired_test(same, same, resamples=500)
    assert (found.value, found.p_value) == (0, 1)
    with pytest.raises(ConfigError, match="cannot pair"):
        paired_test(same, same[:50])


def test_p_values_are_uniform_under_no_difference_and_too_small_when_products_are_ignored():
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(30), 10)
    by_product, naive = [], []
    for _ in range(150):
        gain = np.repeat(random.normal(size=30), 10)
        by_product.append(paired_test(np.zeros(300), gain, groups=groups, resamples=200).p_value)
        naive.append(paired_test(np.zeros(300), gain, resamples=200).p_value)
    assert np.mean(np.array(by_product) < 0.05) < 0.12
    assert np.mean(np.array(naive) < 0.05) > 0.3


def test_exact_sign_flip_p_value():
    """Eight gains of one size and sign: 2 of 256 sign patterns are as extreme."""
    found = paired_test(np.zeros(8), np.ones(8), resamples=20_000)
    assert found.p_value == pytest.approx(2 / 256, rel=0.2)


@pytest.mark.parametrize("queries", [49, 1977])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_of_equal_shares_is_the_exact_one(queries, value):
    """Resamples of equal values are equal, which is no certainty: Clopper and Pearson's bounds for 0 or N of N."""
    stats = pytest.importorskip("scipy.stats")
    figure = intervals({"hit@1": np.full(queries, value)})["hit@1"]
    exact = stats.binomtest(int(value * queries), queries).proportion_ci(0.95, method="exact")
    assert figure.value == value
    assert (figure.low, figure.high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_equal_shares_count_by_product_and_ranks_keep_their_interval():
    values = {"recall@1": np.full(40, 0.25), "median_rank": np.full(40, 7.0)}
    alone, grouped = intervals(values), intervals(values, groups=np.repeat(np.arange(10), 4))
    unseen = 0.025 ** (1 / 10)  # at least this share of products is like the ten, with 97.5 %
    assert grouped["recall@1"].low == pytest.approx(0.25 * unseen)
    assert grouped["recall@1"].high == pytest.approx(1 - 0.75 * unseen)
    assert grouped["recall@1"].low < alone["recall@1"].low < 0.25 < alone["recall@1"].high < grouped["recall@1"].high
    assert (alone["median_rank"].low, alone["median_rank"].high) == (7, 7)
    one = intervals({"hit@1": np.array([1.0, 0.0])}, groups=np.array([3, 3]))["hit@1"]  # one product says little
    assert one.low == pytest.approx(0.0125) and one.high == pytest.approx(0.9875)


def test_a_difference_of_equal_models_is_not_known_to_the_last_digit():
    same = np.random.default_rng(0).integers(0, 2, 60).astype(float)
    found = paired_test(same, same, resamples=100)
    assert found.value == 0 and found.high == pytest.approx(1 - 0.025 ** (1 / 60)) and found.low == -found.high
    ranks = paired_test(same + 3, same + 3, resamples=100)
    assert (ranks.low, ranks.high) == (0, 0)  # ranks have no largest difference


def test_coverage_of_rare_successes():
    """At a true share of 1 % of 49 products the plain percentile interval misses it in six cases of ten."""
    random = np.random.default_rng(11)
    draws = random.random((300, 49)) < 0.01
    found = [intervals({"hit@1": row.astype(float)}, bootstrap=200)["hit@1"] for row in draws]
    assert np.mean([f.low <= 0.01 <= f.high for f in found]) > 0.9


def test_summarize_and_breakdown():
    scores = np.eye(6, dtype=np.float32)[[0, 1, 2, 0, 0, 0]]
    ranks = retrieval_ranks(scores, np.eye(6), Relevance.from_pairs(range(6), range(6), shape=(6, 6)))
    figures = summarize(ranks, ks=(1,), groups=[1, 1, 2, 2, 3, 3], bootstrap=50)
    assert figures["recall@1"].value == pytest.approx(0.5)
    rows = breakdown({"hit@1": np.array([1, 1, 0, 1.0])}, ["red", "blue", "red", None], bootstrap=0)
    assert [(r.value, r.queries, r.metrics["hit@1"].value) for r in rows] == [
        ("red", 2, 0.5),
        ("(none)", 1, 1),
        ("blue", 1, 1),
    ]
    other = breakdown({"hit@1": np.array([1, 1, 0, 1.0])}, list("aabc"), bootstrap=0, most=2)
    assert [(r.value, r.queries) for r in other] == [("a", 2), ("(other)", 2)]
