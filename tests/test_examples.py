"""What the report shows of single queries: right answers beside wrong hits, scores, no product twice, a histogram."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import legend
from PIL import Image
from test_evaluation import ColorEncoder, catalog, photo
from test_several_images import Angles, three_rows

from dualtower.data.items import ItemDataset
from dualtower.evaluation import evaluate, write_report
from dualtower.evaluation.examples import find_examples, sample_scores
from dualtower.evaluation.reports.figures import Framed, draw_curves, draw_histogram, draw_strip
from dualtower.types import Item


def test_right_answers_stand_beside_wrong_hits_with_rank_and_score() -> None:
    """Of "b too" at 60 degrees the hits are a#2 (40) and c (90); the right answer b (20) is third."""
    direction = evaluate(Angles(), three_rows(), ks=(1,), bootstrap=0).directions["text_to_image"]
    (worst,) = find_examples(direction, examples=1, hits=2, seed=0)["Worst"]
    assert direction.queries.texts[worst.query] == "b too" and worst.first_rank == 3
    found = [(direction.gallery.keys[p.item], p.rank, p.relevant) for p in worst.hits]
    assert found == [("a#2", 1, False), ("c", 2, False)]
    (missed,) = worst.missed
    assert (direction.gallery.keys[missed.item], missed.rank, missed.relevant) == ("b", 3, True)
    scores = [placed.score for placed in (*worst.hits, missed)]
    assert scores == pytest.approx(np.cos(np.deg2rad([20, 30, 40])), abs=1e-6)
    assert missed.label == "3: 0.766"
    (best,) = find_examples(direction, examples=1, hits=4, seed=0)["Best"]
    assert best.missed == [] and best.hits[0].relevant


def repeated() -> ItemDataset:
    """Thirty rows of a wrongly titled product among ten right ones."""
    wrong = [Item(f"w{i}", "wrong", (f"red mug {i}",), photo((40, 60, 210), i)) for i in range(30)]
    right = [Item(f"r{i}", f"right {i}", (f"red cup {i}",), photo((200, 30, 30), i)) for i in range(10)]
    return ItemDataset.from_rows([*wrong, *right])


def test_no_product_stands_twice_in_a_list() -> None:
    result = evaluate(ColorEncoder(), repeated(), ks=(1,), bootstrap=0)
    for direction in result.directions.values():
        for kind, examples in find_examples(direction, examples=5, hits=3, seed=1).items():
            items = [direction.groups[np.searchsorted(direction.ranks.judged, e.query)] for e in examples]
            assert len(set(items)) == len(items), kind


def test_sampled_scores_are_those_of_the_pairs() -> None:
    result = evaluate(ColorEncoder(60), catalog(views=5), ks=(1,), bootstrap=0)
    for direction in result.directions.values():
        relevant, others = sample_scores(direction, most=4000, seed=3)
        assert len(relevant) == len(direction.ranks.scores)
        pairs = direction.queries.embeddings @ direction.gallery.embeddings.T
        allowed = np.ones(pairs.shape, bool)
        allowed[direction.ranks.queries, direction.ranks.items] = False
        if direction.exclude is not None:
            allowed[np.arange(len(pairs)), direction.exclude] = False
        expected = pairs[allowed]
        assert np.abs(expected[:, None] - others).min(axis=0).max() < 1e-6
        assert np.mean(others) == pytest.approx(expected.mean(), abs=0.05)


def test_the_report_shows_them(tmp_path: Path) -> None:
    text = write_report(
        tmp_path, evaluate(Angles(), three_rows(), ks=(1,), bootstrap=0), examples=2, hits=2
    ).read_text()
    assert "3: 0.766" not in text  # of an image it is drawn into the strip
    line = next(line for line in text.splitlines() if "b too" in line and "**" in line)
    assert re.search(r"\*\*1: 0\.\d{3} b ✓\*\*<br>2: 0\.\d{3} a (front|back)", line)  # b(20): b, then a front or a back
    assert "**4: 0.766 b too ✓**" in line
    assert "text_to_image_scores.png" in text and "of cases a relevant pair scores higher" in text
    with Image.open(tmp_path / "report" / "text_to_image_scores.png") as image:
        assert image.width > 300


def test_a_busy_machine_draws_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib warns where the search for the best place of a legend takes longer than a second."""
    ticks = itertools.count()
    monkeypatch.setattr(legend.time, "perf_counter", lambda: 5 * next(ticks))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_histogram({"a": np.zeros(3), "b": np.array([1.0, 2.0])})
        draw_curves([{"step": n, "validation": {"score": n, "other": n}} for n in (1, 2)])


def test_strips_and_histograms_are_drawn() -> None:
    red = photo((200, 30, 30), 0)
    hits, missed = [Framed(red, False, "1: 0.9")] * 3, [Framed(red, True, "17: 0.2")]
    strip = draw_strip([hits, missed], query=red)
    wider = draw_strip([hits, missed, missed], query=red)
    assert strip.height > 112 and wider.width > strip.width
    assert draw_strip([hits, []], query=None).width == 3 * 118 - 6
    pixels = np.asarray(strip)
    green = (pixels == (24, 150, 60)).all(axis=2)
    assert green[:, -112:].any() and not green[:, :-112].any()  # the right answer alone has the green frame
    assert (pixels[112:] != 255).any()  # labels
    assert draw_histogram({"a": np.zeros(3), "b": np.array([1.0, 2.0])}).width > 300
