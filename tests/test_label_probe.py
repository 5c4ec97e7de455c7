"""Models measured by what few labels teach: draws, figures, intervals, and what cannot be measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import factories
import numpy as np
import pytest
from PIL import Image

from dualtower import DualTower, Item
from dualtower.data.items import ItemDataset
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation.baselines import raw_pixels, with_fresh_weights
from dualtower.evaluation.classification import class_metrics
from dualtower.evaluation.label_probe import image_vectors, measure_labels, vector_probe
from dualtower.evaluation.label_splits import LabeledSplits, label_draws, labeled_splits
from dualtower.evaluation.probes import nearest_vote

COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "gray": (120, 120, 120)}


def image(color: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).normal(0, 40, (40, 30, 3))
    pixels = np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8)
    return factories.png(Image.fromarray(pixels))


def rows(counts: dict[str, int], *, start: int = 0, products: int | None = None) -> list[Item]:
    """Images in the color that their label says; `products` of them, or one for each row."""
    colors = [color for color, count in counts.items() for _ in range(count)]
    return [
        Item(
            f"{start + i}",
            f"{start + (i % (products or len(colors)))}",
            ("a thing",),
            image(c, start + i),
            {"color": c},
        )
        for i, c in enumerate(colors)
    ]


def items(counts: dict[str, int], split: str = "train", **more: int) -> ItemDataset:
    return ItemDataset.from_rows(rows(counts, **more), card="shop", split=split)


@pytest.fixture(scope="module")
def splits() -> LabeledSplits:
    train = items({"red": 120, "green": 60, "blue": 15, "gray": 5})
    return labeled_splits(train, items({"red": 20, "green": 12, "blue": 6, "gray": 2}, "test", start=1000), "color")


def raw(rows: ItemDataset) -> np.ndarray:
    return raw_pixels(rows.images)


def test_draws_are_stratified_nested_and_different(splits: LabeledSplits) -> None:
    drawn = label_draws(splits, [0.02, 0.1, 0.5, 1], draws=3, seed=5)
    assert [len(of_fraction) for of_fraction in drawn] == [3, 3, 3, 1]  # all rows can be drawn in one way only
    for fraction, of_fraction in zip([0.02, 0.1, 0.5, 1], drawn, strict=True):
        for chosen in of_fraction:
            assert len(chosen) == len(set(chosen)) == round(200 * fraction) and (np.diff(chosen) > 0).all()
            counts = np.bincount(splits.train_labels[chosen], minlength=4)
            assert counts.min() >= 1
            if fraction > 0.02:  # where there is more than one row for each class
                np.testing.assert_allclose(counts, splits.counts * fraction, atol=1.01)
    for draw in range(3):
        assert set(drawn[0][draw]) < set(drawn[1][draw]) < set(drawn[2][draw]) < set(drawn[3][0])
    assert len({tuple(chosen) for chosen in drawn[1]}) == 3
    again, other = (label_draws(splits, [0.1], draws=3, seed=seed)[0] for seed in (5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(drawn[1], again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(drawn[1], other, strict=True))


def test_every_row_is_as_likely_as_others_of_its_class(splits: LabeledSplits) -> None:
    drawn = label_draws(splits, [0.1], draws=400)[0]
    times = np.bincount(np.concatenate(drawn), minlength=200)
    reds = times[splits.train_labels == list(splits.classes).index("red")]
    assert reds.min() > 15 and reds.max() < 75  # 12 of 120, 400 times: 40 each


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([0.1, 0.0], r"fraction 0 of the labels: give shares above 0 and at most 1"),
        ([-0.5], r"fraction -0\.5 "),
        ([1.5], r"fraction 1\.5 "),
        ([float("nan")], r"fraction nan "),
        ([], r"no fraction of the labels"),
        ([0.01], r"is 2 of 200 rows, which leaves a class without a row: 'color' has 4 classes; give 0\.02 or more"),
    ],
)
def test_impossible_fractions_are_named(fractions: list[float], message: str, splits: LabeledSplits) -> None:
    with pytest.raises(ConfigError, match=message):
        label_draws(splits, fractions, draws=2)


def test_the_fraction_that_is_advised_is_possible(splits: LabeledSplits) -> None:
    assert len(label_draws(splits, [0.02], draws=1)[0][0]) == 4
    with pytest.raises(ConfigError, match="0 draws of the labels"):
        label_draws(splits, [0.1], draws=0)


def test_rows_that_cannot_count_are_left_out_and_counted() -> None:
    train = rows({"red": 5, "green": 4})
    train += [Item("x", "x", (), None, {"color": "red"}), Item("y", "y", (), image("red", 1), {"color": None})]
    train += [Item("z", "z", (), None, {"color": "blue"})]  # a class without images is none
    test = [*rows({"red": 2, "blue": 1}, start=100), Item("w", "w", (), image("red", 2), {"color": ""})]
    given = (ItemDataset.from_rows(part, card="shop", split=name) for part, name in ((train, "train"), (test, "test")))
    splits = labeled_splits(*given, "color")
    assert splits.classes == ["green", "red"] and splits.counts.tolist() == [4, 5]
    assert splits.test.ids == ["100", "101"] and splits.test_labels.tolist() == [1, 1]
    assert splits.left_out == [
        "2 without an image, 1 without color of the training rows",
        "1 without color, 1 of a color that training does not have of the test rows",
    ]
    probe = vector_probe({"raw": raw}, splits, [1.0], method="knn", bootstrap=20)
    assert f"Left out: {'; '.join(splits.left_out)}." in probe.table()


@pytest.mark.parametrize(
    ("train", "test", "label", "error", "message"),
    [
        (items({"red": 4, "blue": 4}), items({"red": 2}, "test"), "colr", UnknownName, "Did you mean 'color'"),
        (items({"red": 4}), items({"red": 2}, "test"), "color", DataError, "'color' has one class, 'red'"),
        (items({"red": 4, "blue": 4}), items({"gray": 2}, "test"), "color", DataError, "test: no row has an image and"),
    ],
)
def test_labels_that_tell_nothing(
    train: ItemDataset, test: ItemDataset, label: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        labeled_splits(train, test, label)


def test_a_quantity_is_told_by_ranges() -> None:
    given = ItemDataset.from_rows([replace(row, attributes={"price": i}) for i, row in enumerate(rows({"red": 50}))])
    splits = labeled_splits(given, given, "price", numeric=["price"])
    assert splits.counts.tolist() == [10] * 5 and splits.classes[1] == "from 9.8"


def test_a_card_without_images() -> None:
    texts = ItemDataset.from_rows(
        [Item(str(i), str(i), ("mug",), None, {"color": c}) for i, c in enumerate(("red", "blue"))], card="shop"
    )
    with pytest.raises(DataError, match=r"shop, split all: no row has an image.*columns: \{image"):
        labeled_splits(texts, texts, "color")


def test_figures_are_those_of_each_draw_alone(splits: LabeledSplits) -> None:
    probe = vector_probe({"raw": raw}, splits, [0.5, 0.1, 0.1], method="knn", neighbors=3, draws=3, bootstrap=50)
    assert [(cell.fraction, cell.labels) for cell in probe.cells] == [(0.1, 20), (0.5, 100)]
    train, test = raw(splits.train), raw(splits.test)
    for fraction, cell in zip((0.1, 0.5), probe.cells, strict=True):
        figures = []
        for chosen in label_draws(splits, [fraction], draws=3)[0]:
            found = nearest_vote(train[chosen], splits.train_labels[chosen], test, classes=4, neighbors=3)
            figures.append(class_metrics(splits.test_labels, found, training_counts=splits.counts).to_dict())
        for name, interval in cell.metrics.items():
            assert interval.value == pytest.approx(np.mean([one[name] for one in figures]))
            assert [draw[name] for draw in cell.by_draw] == [one[name] for one in figures]
            assert interval.low <= interval.value <= interval.high
    assert set(probe.cells[0].metrics) == {"accuracy", "macro_f1", "recall_head", "recall_mid", "recall_tail"}


def fixed(accuracies: list[float], splits: LabeledSplits) -> Callable[[np.ndarray, int], np.ndarray]:
    """Predicts the first rows right and the others wrong."""
    truth = splits.test_labels

    def predict(chosen: np.ndarray, draw: int) -> np.ndarray:
        right = np.arange(len(truth)) < accuracies[draw] * len(truth)
        return np.where(right, truth, (truth + 1) % len(splits.classes))

    return predict


def plain(rows_to_test: int, products: int | None = None) -> LabeledSplits:
    counts = {"red": rows_to_test // 2, "blue": rows_to_test - rows_to_test // 2}
    test = items(counts, "test", start=1000, products=products or rows_to_test)
    return labeled_splits(items({"red": 30, "blue": 30}), test, "color")


def test_one_draw_has_the_interval_of_a_share() -> None:
    splits = plain(400)
    cell = measure_labels({"m": fixed([0.8], splits)}, splits, [1.0], method="x", bootstrap=2000).cells[0]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    accuracy = cell.metrics["accuracy"]
    assert (accuracy.low, accuracy.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)


def test_rows_of_one_product_count_once() -> None:
    """Ten rows each of 40 products, all of them right or wrong."""
    splits = plain(400, products=40)
    right = splits.test.codes % 5 > 0

    def predict(chosen: np.ndarray, draw: int) -> np.ndarray:
        return np.where(right, splits.test_labels, 1 - splits.test_labels)

    accuracy = measure_labels({"m": predict}, splits, [1.0], method="x", bootstrap=2000).cells[0].metrics["accuracy"]
    half = 1.96 * np.sqrt(accuracy.value * (1 - accuracy.value) / 40)
    assert accuracy.high - accuracy.low == pytest.approx(2 * half, rel=0.15)


def test_draws_that_differ_widen_the_interval() -> None:
    """By their own variance: five draws of 0.6 to 1.0 on so many rows that these tell nothing."""
    splits = plain(400)
    spread, equal = [0.6, 0.7, 0.8, 0.9, 1.0], [0.8] * 5
    wide, narrow = (
        measure_labels({"m": fixed(by, splits)}, splits, [0.5], method="x", bootstrap=2000).cells[0].metrics["accuracy"]
        for by in (spread, equal)
    )
    variance = np.var(spread, ddof=1) / 5
    of_rows = ((narrow.high - narrow.low) / 3.92) ** 2
    assert (wide.value, narrow.value) == pytest.approx((0.8, 0.8))
    assert ((wide.high - wide.low) / 3.92) ** 2 == pytest.approx(variance + of_rows, rel=0.25)


def test_all_right_is_no_certainty() -> None:
    splits = plain(40)
    probe = measure_labels({"m": fixed([1.0] * 2, splits)}, splits, [0.5], method="x", draws=2, bootstrap=200)
    accuracy = probe.cells[0].metrics["accuracy"]
    assert accuracy.value == accuracy.high == 1 and 0.85 < accuracy.low < 0.95


def test_without_a_bootstrap_there_are_no_brackets(splits: LabeledSplits) -> None:
    colors = {"colors": lambda given: raw_pixels(given.images, side=1)}
    probe = vector_probe(colors, splits, [0.1], method="linear", draws=2, bootstrap=0)
    assert probe.cells[0].metrics["accuracy"].value > 0.9
    assert probe.cells[0].metrics["accuracy"].low is None and "[" not in probe.table()
    assert "means of 2 draws" in probe.table()


def test_each_row_is_embedded_once(splits: LabeledSplits) -> None:
    seen: list[int] = []

    def embed(given: ItemDataset) -> np.ndarray:
        seen.append(len(given))
        return raw(given)

    vector_probe({"m": embed}, splits, [0.02, 0.05], method="knn", draws=4, bootstrap=0)
    drawn = np.unique(np.concatenate(label_draws(splits, [0.05], draws=4)[0]))
    assert seen == [len(drawn), len(splits.test)] and len(drawn) < 41


def test_table_and_json_say_what_was_measured(splits: LabeledSplits) -> None:
    model = factories.spread_model()
    vectors = {"towers": image_vectors(model), "raw": raw}
    probe = vector_probe(vectors, splits, [0.1, 1.0], method="knn", draws=2, bootstrap=20)
    lines = probe.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["towers", "towers", "raw", "raw"]
    assert "10 %" in lines[2] and "100 %" in lines[3] and "recall, tail classes" in lines[0]
    assert "4 classes; 200 rows of train to learn from, 40 rows of test" in lines[-1] and "2 draws" in lines[-1]
    plain = json.loads(json.dumps(probe.to_dict()))
    assert plain["protocol"]["classes"] == 4 and plain["protocol"]["method"] == "knn"
    assert [len(cell["draws"]) for cell in plain["cells"]] == [2, 1, 2, 1]
    assert plain["cells"][0]["accuracy"].keys() == {"value", "low", "high"}


def test_fresh_weights_have_the_architecture_and_nothing_else() -> None:
    model = factories.spread_model()
    fresh, again, other = (with_fresh_weights(model, seed=seed) for seed in (0, 0, 1))
    assert fresh.config == model.config and not fresh.training
    assert fresh.fingerprint == again.fingerprint != other.fingerprint != model.fingerprint


def test_raw_pixels_are_of_one_size() -> None:
    pixels = raw_pixels([image("red", 0), Image.new("RGB", (7, 50), (255, 0, 0))])
    assert pixels.shape == (2, 768) and pixels.dtype == np.float32
    assert pixels[1].reshape(3, 256).mean(1) == pytest.approx([170, -85, -85])


def test_a_model_of_texts_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="no image tower"):
        image_vectors(DualTower.create(replace(factories.config("bow"), image=None), factories.tokenizer()))
