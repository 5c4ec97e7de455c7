"""Product-to-product figures against counting by hand; heads on the long tail."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from dualtower import FusionConfig
from dualtower.data.products import Products
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation import class_figures, measure_heads, similar_products
from dualtower.types import Product

COLOURS = ["red", "red", "navy", "navy", "red", "white", None, "navy"]


def catalogue() -> Products:
    rows = [
        Product(str(i), str(i), (tiny.TITLES[i],), tiny.png(tiny.picture(i)), {"colour": colour, "kind": "mug"})
        for i, colour in enumerate(COLOURS)
    ]
    return Products.from_rows(rows)


def model(**more):
    built = tiny.model(fusion=FusionConfig(width=16, **more))
    torch.nn.init.normal_(built.fusion.out.weight)
    return built


def test_figures_equal_counting_by_hand() -> None:
    built, products = model(), catalogue()
    result = similar_products(built, products, relevance=["colour", "kind"], ks=(1, 3), bootstrap=20)
    assert list(result.metrics) == ["title", "picture", "average", "fused"]
    texts, pictures = [t[0] for t in products.texts], list(products.pictures)
    vectors = {
        "title": built.encode_text(texts),
        "picture": built.encode_image(pictures),
        "fused": built.encode_product(text=texts, image=pictures),
    }
    for kind, matrix in vectors.items():
        scores = matrix @ matrix.T
        np.fill_diagonal(scores, -np.inf)
        precision = []
        for row, colour in enumerate(COLOURS):
            relevant = [c == colour and colour is not None and i != row for i, c in enumerate(COLOURS)]
            if any(relevant):
                precision.append(np.mean([relevant[i] for i in np.argsort(-scores[row])[:3]]))
        assert result.metrics[kind]["precision@3"].value == pytest.approx(np.mean(precision))
    assert result.protocol["queries"] == 6  # white has no like, and one row has no colour
    gain = result.gains["average"]["ndcg@10"].value
    assert gain == pytest.approx(result.metrics["fused"]["ndcg@10"].value - result.metrics["average"]["ndcg@10"].value)
    assert "fused" in result.table() and result.to_dict()["product_to_product"]["fused"]["recall@1"]["low"] is not None


def test_without_a_fusion_there_is_nothing_to_gain() -> None:
    result = similar_products(tiny.model(), catalogue(), relevance=["colour"], bootstrap=0)
    assert list(result.metrics) == ["title", "picture", "average"] and not result.gains


def test_bad_relevance_is_named() -> None:
    with pytest.raises(UnknownName, match=r"no attribute 'color'.*Did you mean 'colour'"):
        similar_products(tiny.model(), catalogue(), relevance=["color"])
    with pytest.raises(DataError, match="no two products are alike in same product"):
        similar_products(tiny.model(), catalogue())
    with pytest.raises(ConfigError, match="cut-offs"):
        similar_products(tiny.model(), catalogue(), relevance=["colour"], ks=())


def test_class_figures_equal_counting_by_hand() -> None:
    truth = np.array([0, 0, 1, 1, 2, -1])
    predicted = np.array([0, 1, 1, 1, 0, 2])
    figures = class_figures(truth, predicted, training_counts=np.array([500, 50, 5, 0]))
    assert figures.rows == 5 and figures.accuracy == pytest.approx(3 / 5)
    assert figures.macro_f1 == pytest.approx((2 * 1 / 4 + 2 * 2 / 5 + 0) / 3)
    assert figures.by_frequency == {"head": 0.5, "mid": 1.0, "tail": 0.0}
    with pytest.raises(ConfigError, match="no row has a class"):
        class_figures(np.array([-1]), np.array([0]), training_counts=np.array([1]))


def test_heads_are_measured() -> None:
    products = catalogue()
    section = measure_heads(model(tasks={"colour": ["navy", "red", "white"]}), products, products.attributes)
    assert section.key == "heads" and section.figures["colour"]["rows"] == 7
    assert "macro-F1" in section.markdown
