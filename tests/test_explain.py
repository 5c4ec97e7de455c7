"""Explanations: they fit the score, name the words, and draw."""

from __future__ import annotations

import factories
import numpy as np
import pytest
from PIL import Image

from dualtower import RerankerConfig
from dualtower.errors import BrokenImage, ConfigError, DataError, UnknownName
from dualtower.inference.explain import _words, draw_explanation, explain

TEXT = "Nike navy blue running shoes"


@pytest.mark.parametrize("text", ["bert", "bow", "lstm", "textcnn"])
@pytest.mark.parametrize("image", ["resnet", "vit", "swin"])
def test_every_pair_of_towers_is_explained(text: str, image: str) -> None:
    found = explain(factories.model(text, image), TEXT, factories.photo())
    assert found.method == "towers" and [word for word, _ in found.words] == TEXT.lower().split()
    assert found.heat.ndim == 2 and np.isfinite(found.heat).all()
    assert found.heat_map().shape == (40, 30)
    assert found.heat_map().min() == 0 and found.heat_map().max() == 1


def test_words_weigh_what_the_score_loses_without_them() -> None:
    model, photo = factories.model(), factories.photo()
    found = explain(model, TEXT, photo)
    (image,) = model.encode_image([photo])
    whole, shorter = model.encode_text([TEXT, "Nike blue running shoes"])
    assert found.score == pytest.approx(float(image @ whole), abs=1e-5)
    assert dict(found.words)["navy"] == pytest.approx(float(image @ whole - image @ shorter), abs=1e-5)


def test_a_region_weighs_what_the_score_loses_without_it() -> None:
    model, photo = factories.model(), factories.photo()
    found = explain(model, TEXT, photo)
    assert found.heat.shape == (8, 6)
    mean = np.asarray(photo).reshape(-1, 3).mean(0).round().astype(np.uint8)
    falls = []
    for top in (0, 5):  # the windows over the cell in the corner hide one, two or four cells of 5x5 pixels
        for left in (0, 5):
            pixels = np.array(photo)
            pixels[: top + 5, : left + 5] = mean
            (image,) = model.encode_image([Image.fromarray(pixels)])
            falls.append(found.score - float(image @ model.encode_text([TEXT])[0]))
    assert found.heat[0, 0] == pytest.approx(np.mean(falls), abs=1e-5)


def test_attention_is_a_distribution() -> None:
    model = factories.model(reranker=RerankerConfig(layers=2, width=16, heads=2))
    found = explain(model, TEXT, factories.photo(), method="attention")
    assert found.heat.sum() == pytest.approx(1, abs=1e-5) and found.heat.min() >= 0
    assert 0 < sum(weight for _, weight in found.words) <= 1 + 1e-5
    assert explain(model, TEXT, factories.photo()).method == "towers"


def test_a_single_word_and_a_blank_image_are_explained() -> None:
    blank = Image.new("RGB", (30, 40), "white")
    found = explain(factories.model("lstm"), "mug", blank)
    assert [word for word, _ in found.words] == ["mug"] and np.isfinite(found.heat_map()).all()


def test_pieces_become_words() -> None:
    model = factories.model()
    ids = model.collator().tokens(["Nike xylophones"])["input_ids"][0]
    first, second = _words(model, ids)
    assert first[0] == "nike" and first[2] == second[1] and second[2] - second[1] > 1  # in several pieces


def test_it_is_drawn() -> None:
    found = explain(factories.model(), TEXT, factories.photo())
    drawn = draw_explanation(found, height=200)
    assert drawn.width == 2 * 150 + 8 and drawn.height > 200
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 50


def test_bad_input_is_named() -> None:
    model = factories.model()
    with pytest.raises(UnknownName, match="no method 'attenton'"):
        explain(model, TEXT, factories.photo(), method="attenton")
    with pytest.raises(ConfigError, match="no re-ranker"):
        explain(model, TEXT, factories.photo(), method="attention")
    with pytest.raises(DataError, match="non-empty"):
        explain(model, " ", factories.photo())
    with pytest.raises(BrokenImage):
        explain(model, TEXT, b"no image")
