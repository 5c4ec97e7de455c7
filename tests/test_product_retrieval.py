"""Product-to-product figures against counting by hand; heads on the long tail."""

from __future__ import annotations

import factories
import numpy as np
import pytest
import torch

from dualtower import FusionConfig
from dualtower.data.items import ItemDataset
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation import class_metrics, evaluate_heads, evaluate_product_retrieval
from dualtower.types import Item

COLORS = ["red", "red", "navy", "navy", "red", "white", None, "navy"]


def catalog() -> ItemDataset:
    rows = [
        Item(str(i), str(i), (factories.TITLES[i],), factories.png(factories.photo(i)), {"color": color, "kind": "mug"})
        for i, color in enumerate(COLORS)
    ]
    return ItemDataset.from_rows(rows)


def model(**more):
    built = factories.model(fusion=FusionConfig(width=16, **more))
    torch.nn.init.normal_(built.fusion.out.weight)
    return built


def test_figures_equal_counting_by_hand() -> None:
    built, items = model(), catalog()
    result = evaluate_product_retrieval(built, items, relevance=["color", "kind"], ks=(1, 3), bootstrap=20)
    assert list(result.metrics) == ["title", "image", "average", "fused"]
    texts, photos = [t[0] for t in items.texts], list(items.images)
    vectors = {
        "title": built.encode_text(texts),
        "image": built.encode_image(photos),
        "fused": built.encode_product(text=texts, image=photos),
    }
    for kind, matrix in vectors.items():
        scores = matrix @ matrix.T
        np.fill_diagonal(scores, -np.inf)
        precision = []
        for row, color in enumerate(COLORS):
            relevant = [c == color and color is not None and i != row for i, c in enumerate(COLORS)]
            if any(relevant):
                precision.append(np.mean([relevant[i] for i in np.argsort(-scores[row])[:3]]))
        assert result.metrics[kind]["precision@3"].value == pytest.approx(np.mean(precision))
    assert result.protocol["queries"] == 6  # white has no like, and one row has no color
    gain = result.gains["average"]["ndcg@10"].value
    assert gain == pytest.approx(result.metrics["fused"]["ndcg@10"].value - result.metrics["average"]["ndcg@10"].value)
    assert "fused" in result.table() and result.to_dict()["product_to_product"]["fused"]["recall@1"]["low"] is not None


def test_without_a_fusion_there_is_nothing_to_gain() -> None:
    result = evaluate_product_retrieval(factories.model(), catalog(), relevance=["color"], bootstrap=0)
    assert list(result.metrics) == ["title", "image", "average"] and not result.gains


def test_bad_relevance_is_named() -> None:
    with pytest.raises(UnknownName, match=r"no attribute 'colr'.*Did you mean 'color'"):
        evaluate_product_retrieval(factories.model(), catalog(), relevance=["colr"])
    with pytest.raises(DataError, match="no two products are alike in same product"):
        evaluate_product_retrieval(factories.model(), catalog())
    with pytest.raises(ConfigError, match="cut-offs"):
        evaluate_product_retrieval(factories.model(), catalog(), relevance=["color"], ks=())


def test_class_figures_equal_counting_by_hand() -> None:
    truth = np.array([0, 0, 1, 1, 2, -1])
    predicted = np.array([0, 1, 1, 1, 0, 2])
    figures = class_metrics(truth, predicted, training_counts=np.array([500, 50, 5, 0]))
    assert figures.rows == 5 and figures.accuracy == pytest.approx(3 / 5)
    assert figures.macro_f1 == pytest.approx((2 * 1 / 4 + 2 * 2 / 5 + 0) / 3)
    assert figures.by_frequency == {"head": 0.5, "mid": 1.0, "tail": 0.0}
    with pytest.raises(ConfigError, match="no row has a class"):
        class_metrics(np.array([-1]), np.array([0]), training_counts=np.array([1]))


def test_heads_are_measured() -> None:
    items = catalog()
    section = evaluate_heads(model(tasks={"color": ["navy", "red", "white"]}), items, items.attributes)
    assert section.key == "heads" and section.figures["color"]["rows"] == 7
    assert "macro-F1" in section.markdown
