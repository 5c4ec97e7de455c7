"""Heads on the towers: the re-ranker, the fusion, composed queries; what they are fed, refuse, save and load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import factories
import numpy as np
import pytest
import torch

from dualtower import AttributesConfig, DualTower, FusionConfig, RerankerConfig
from dualtower.data.transforms.attributes import attribute_values, class_labels, fit_attributes, fit_classes
from dualtower.errors import ConfigError, DataError, ModelFolderError, UnknownName
from dualtower.inference.pair_scoring import features_to_rerank, score_pairs
from dualtower.models.heads.attention import CrossAttention
from dualtower.models.towers.attributes import AttributeTower
from dualtower.types import Batch, Embeddings, Features

RERANKER = RerankerConfig(layers=2, width=16, heads=2)
TRAIN = {"color": ["red", "navy", "red", None], "price": [10.0, 20.0, None, 30.0], "thing": ["mug", "mug", "bag", ""]}


def reranking(text: str = "bert", image: str = "resnet", *, trained: bool = True) -> DualTower:
    model = factories.model(text, image, reranker=RERANKER)
    if trained:  # as fresh scores count nothing
        torch.nn.init.normal_(model.reranker.score[-1].weight)
        model.reranker.weight.fill_(1.0)
    return model


def fusing(kind: str = "concat", *, attributes: bool = False, trained: bool = True, **more) -> DualTower:
    read = fit_attributes(AttributesConfig(("color", "price"), width=8), TRAIN, ["price"]) if attributes else None
    config = FusionConfig(method=kind, width=16, layers=1, heads=2, attributes=read, **more)
    model = factories.model("bert", "resnet", fusion=config)
    if trained:
        torch.nn.init.normal_(model.fusion.out.weight)
    return model


def batch(model: DualTower, texts: list[str]) -> Batch:
    pixels = torch.stack([torch.from_numpy(np.array(factories.photo(i))).permute(2, 0, 1) for i in range(len(texts))])
    tokens = model.collator().tokens(texts)
    return Batch(tuple(texts), torch.arange(len(texts)), pixels=pixels, tokens=tokens)


# Towers' tokens


@pytest.mark.parametrize("text", ["bert", "bow", "lstm", "textcnn"])
@pytest.mark.parametrize("image", ["resnet", "vit", "swin"])
def test_every_pair_of_towers_carries_a_reranker(text: str, image: str) -> None:
    model = reranking(text, image)
    seen = model(batch(model, factories.TITLES[:3]))
    scores = model.reranker(
        model.reranker.text_states(seen.text_features), model.reranker.image_states(seen.image_features)
    )
    assert scores.shape == (3,) and torch.isfinite(scores).all() and scores.std() > 0


def test_padding_changes_no_score() -> None:
    model = reranking()
    photos = [factories.photo(0)] * 2
    short, long = "Nike red mug", " ".join(factories.TITLES[:4])
    alone = score_pairs(model, [short], photos, np.array([[0, 0]]))
    beside = score_pairs(model, [short, long], photos, np.array([[0, 0], [1, 1]]))
    assert alone[0] == pytest.approx(beside[0], abs=1e-6)


def test_attention_weights_are_those_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, heads=2, dropout=0.0)
    states, others = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    weights = layer.weights(states, others, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4))
    assert (weights[~mask.unsqueeze(1).expand_as(weights)] == 0).all()
    # One visible token: whatever is looked at with weight 1 is what is added.
    value = layer.key_value(layer.norm_others(others[2:, :1])).chunk(2, -1)[1]
    seen = states[2:] + layer.out(value)
    torch.testing.assert_close(layer(states, others, mask)[2:], seen + layer.mlp(layer.norm_mlp(seen)))


# Re-ranker


def test_a_fresh_reranker_changes_nothing() -> None:
    model = reranking(trained=False)
    pairs = np.array([[0, 1], [1, 0]])
    assert (score_pairs(model, factories.TITLES[:2], [factories.photo(0), factories.photo(1)], pairs) == 0).all()


@pytest.mark.parametrize("block", [(1, 1), (2, 3), (100, 100)])
def test_scores_do_not_depend_on_the_blocks(block: tuple[int, int]) -> None:
    model, photos = reranking(), [factories.photo(i) for i in range(6)]
    pairs = np.array([[t, i] for t in range(5) for i in range(6) if (t + i) % 2])
    np.random.default_rng(0).shuffle(pairs)
    scores = score_pairs(model, factories.TITLES[:5], photos, pairs, block=block, at_once=3)
    one_by_one = [score_pairs(model, [factories.TITLES[t]], [photos[i]], np.array([[0, 0]]))[0] for t, i in pairs]
    np.testing.assert_allclose(scores, one_by_one, atol=1e-5)


@pytest.mark.parametrize("text", ["bert", "bow", "lstm", "textcnn"])
def test_a_reranker_can_look_with_towers_of_its_own(text: str, tmp_path: Path) -> None:
    own = replace(RERANKER, text=factories.TEXT[text], image=factories.IMAGE["vit"])
    model = factories.model("bert", "resnet", reranker=own)
    torch.nn.init.normal_(model.reranker.score[-1].weight)
    model.reranker.weight.fill_(1.0)
    pairs, photos = np.array([[0, 1], [1, 0]]), [factories.photo(0), factories.photo(1)]
    scores = score_pairs(model, factories.TITLES[:2], photos, pairs)
    model.save_pretrained(tmp_path / "model")
    again = DualTower.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(score_pairs(again, factories.TITLES[:2], photos, pairs), scores)
    with torch.no_grad():  # what the model's towers see plays no part
        for tower in (again.text_tower, again.image_tower):
            for parameter in tower.parameters():
                parameter.zero_()
    np.testing.assert_array_equal(score_pairs(again, factories.TITLES[:2], photos, pairs), scores)
    assert features_to_rerank(again, batch(again, factories.TITLES[:1]))[1].grid == (3, 2)


def test_own_towers_begin_fresh() -> None:
    with pytest.raises(ConfigError, match=r"reranker\.image\.pretrained is True, but its own towers begin fresh"):
        RerankerConfig(image=replace(factories.IMAGE["vit"], pretrained=True))


def test_a_model_without_reranker_says_so() -> None:
    with pytest.raises(ConfigError, match=r"no re-ranker.*train_reranker\.py --base"):
        score_pairs(factories.model(), ["mug"], [factories.photo()], np.array([[0, 0]]))


def test_a_reranker_refuses_other_towers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = reranking()
    model.record_tower_fingerprint()
    model.save_pretrained(tmp_path / "model")
    again = DualTower.from_pretrained(tmp_path / "model")
    assert again.config.reranker.towers == model.towers_fingerprint == again.towers_fingerprint
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["text_head.layers.1.weight"] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"trained with towers \w{16}, these are \w{16}"):
        DualTower.from_pretrained(tmp_path / "model")


def test_heads_leave_the_towers_as_they_were() -> None:
    plain = factories.model()
    model = plain.with_heads(reranker=RERANKER)
    assert model.towers_fingerprint == plain.fingerprint == plain.towers_fingerprint != model.fingerprint
    assert model.with_heads().fingerprint == plain.fingerprint
    np.testing.assert_array_equal(model.eval().encode_text(["mug"]), plain.encode_text(["mug"]))


# Fusion


@pytest.mark.parametrize("kind", ["concat", "cross"])
def test_a_fresh_fusion_is_the_average_of_both_towers(kind: str) -> None:
    model, texts, photos = fusing(kind, trained=False), factories.TITLES[:3], [factories.photo(i) for i in range(3)]
    text, image = model.encode_text(texts), model.encode_image(photos)
    mean = (text + image) / np.linalg.norm(text + image, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_product(text=texts, image=photos), mean, atol=1e-5)
    np.testing.assert_allclose(model.encode_product(text=texts), text, atol=1e-5)
    np.testing.assert_allclose(model.encode_product(image=photos), image, atol=1e-5)


@pytest.mark.parametrize("kind", ["concat", "cross"])
def test_what_is_missing_is_never_read(kind: str) -> None:
    model, photos = fusing(kind), [factories.photo(i) for i in range(3)]
    mixed = model.encode_product(text=["mug", None, "dress"], image=[photos[0], photos[1], None])
    np.testing.assert_allclose(mixed[1:2], model.encode_product(image=[photos[1]]), atol=1e-5)
    np.testing.assert_allclose(mixed[2:], model.encode_product(text=["dress"]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-5)


def test_bad_products_are_named() -> None:
    model = fusing()
    with pytest.raises(DataError, match="product 1 has neither title nor image"):
        model.encode_product(text=["mug", "  "], image=[None, None])
    with pytest.raises(DataError, match="of one length"):
        model.encode_product(text=["mug", "bag"], image=[factories.photo()])
    with pytest.raises(ConfigError, match="no fusion"):
        factories.model().encode_product(text=["mug"])
    with pytest.raises(UnknownName, match=r"no fusion 'crss'; known: concat, cross\. Did you mean 'cross'"):
        FusionConfig(method="crss")
    with pytest.raises(ConfigError, match="color would be both read and predicted"):
        FusionConfig(attributes=AttributesConfig(("color",)), tasks={"color": ["a", "b"]})


def test_training_hides_a_title_or_an_image_but_never_both() -> None:
    model = fusing(modality_dropout=0.5).train()
    torch.manual_seed(0)
    side = torch.randn(4000, 12)
    some = Embeddings(side, side, torch.ones(()), torch.zeros(()))
    has_image, has_text = model.fusion._present(some, None)
    assert (has_image | has_text).all()
    assert (~has_image).float().mean() == pytest.approx(0.25, abs=0.03)
    assert (~has_text).float().mean() == pytest.approx(0.25, abs=0.03)
    only_text = torch.tensor([[False, True]]).expand(4000, 2)
    assert model.fusion._present(some, only_text)[1].all()


def test_a_fused_model_survives_its_folder(tmp_path: Path) -> None:
    model = fusing("cross", attributes=True, tasks={"thing": ["bag", "mug"]})
    model.save_pretrained(tmp_path / "model")
    again = DualTower.from_pretrained(tmp_path / "model")
    given = {"text": ["mug"], "image": [factories.photo()], "attributes": [{"color": "red", "price": 12}]}
    np.testing.assert_array_equal(again.encode_product(**given), model.encode_product(**given))
    assert again.fingerprint == model.fingerprint


# Attributes


def test_attributes_know_the_training_split() -> None:
    config = fit_attributes(AttributesConfig(("color", "price")), TRAIN, ["price"])
    assert config.categories == {"color": ["navy", "red"]}
    assert config.numbers["price"] == pytest.approx([20, np.sqrt(200 / 3)])
    values = attribute_values(config, [{"color": "red", "price": 20}, {"color": "green"}, {}])
    assert values.codes.tolist() == [[2], [0], [0]]  # never seen, and missing, are one kind: unknown
    assert values.numbers[0].item() == 0 and values.numbers[1:].isnan().all()


def test_an_attribute_never_seen_counts_as_unknown() -> None:
    model = fusing(attributes=True)
    photos = [factories.photo()] * 3
    rows = [{"color": "green"}, {}, {"color": "red"}]
    vectors = model.encode_product(image=photos, attributes=rows)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4


def test_bad_attributes_are_named() -> None:
    with pytest.raises(UnknownName, match=r"no attribute 'colr'.*Did you mean 'color'"):
        fit_attributes(AttributesConfig(("colr",)), TRAIN)
    with pytest.raises(DataError, match="'size' is empty in all 2 training rows"):
        fit_attributes(AttributesConfig(("size",)), {"size": [None, ""]})
    with pytest.raises(DataError, match="'price' holds 'cheap', which is no finite number"):
        fit_attributes(AttributesConfig(("price",)), {"price": ["cheap"]}, ["price"])
    with pytest.raises(ConfigError, match="names is empty"):
        AttributeTower(AttributesConfig())
    with pytest.raises(DataError, match="'thing' has one class, 'mug'"):
        fit_classes(["thing"], {"thing": ["mug", "mug", None]})
    with pytest.raises(DataError, match="'thing' has no value at all"):
        fit_classes(["thing"], {"thing": [None]})


def test_classes_are_numbered_and_strangers_are_not() -> None:
    classes = fit_classes(["thing"], TRAIN)
    rows = [{"thing": "mug"}, {"thing": "hat"}, {"thing": None}, {"thing": "bag"}]
    assert class_labels(classes, rows)[:, 0].tolist() == [1, -1, -1, 0]


def test_a_quantity_is_predicted_in_buckets() -> None:
    prices = {"price": [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 1000, None]}
    classes = fit_classes(["price"], prices, ["price"])
    assert classes["price"] == ["from -inf", "from 2.8", "from 4.6", "from 6.4", "from 8.2"]
    rows = [{"price": value} for value in (-5, 2.79, 2.8, 9, 2000, None)]
    assert class_labels(classes, rows)[:, 0].tolist() == [0, 0, 1, 4, 4, -1]
    with pytest.raises(DataError, match="'price' has one class"):
        fit_classes(["price"], {"price": [5, 5.0]}, ["price"])


def test_hidden_attributes_are_drawn_while_training() -> None:
    config = fit_attributes(AttributesConfig(("color", "price"), width=4, dropout=0.5), TRAIN, ["price"])
    tower = AttributeTower(config)
    values = attribute_values(config, [{"color": "red", "price": 10}] * 500)
    torch.manual_seed(0)
    kinds = [len(torch.unique(tower(values)[:, i].round(decimals=5), dim=0)) for i in range(2)]
    assert kinds == [2, 2]
    assert len(torch.unique(tower.eval()(values), dim=0)) == 1


# Composed queries


def test_composed_queries_are_weighted_sums() -> None:
    model, photo = factories.model(), factories.photo()
    text, away = model.encode_text(["red dress", "floral"])
    (image,) = model.encode_image([photo])
    wanted = text + 0.6 * image - 0.5 * away
    composed = model.compose([("red dress", 1.0), (photo, 0.6), ("floral", -0.5)])
    np.testing.assert_allclose(composed, wanted / np.linalg.norm(wanted), atol=1e-5)
    np.testing.assert_allclose(model.compose([("red dress", 3)]), text, atol=1e-5)


def test_bad_compositions_are_refused() -> None:
    model = factories.model()
    with pytest.raises(DataError, match="cancel out"):
        model.compose([("mug", 1.0), ("mug", -1.0)])
    with pytest.raises(DataError, match="compose takes"):
        model.compose([])
    with pytest.raises(DataError, match="term 0"):
        model.compose([("mug", float("nan"))])


def test_config_json_tells_of_the_heads(tmp_path: Path) -> None:
    reranking().save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["model"]
    assert saved["reranker"]["width"] == 16 and saved["fusion"] is None


def test_features_without_a_mask_are_all_real() -> None:
    states = reranking().reranker.text_states(Features(torch.zeros(1, 16), torch.zeros(1, 4, 16), None))
    assert states.mask is None and states.tokens.shape == (1, 4, 16)


def test_reranker_sizes_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"reranker\.layers is 0"):
        replace(RERANKER, layers=0)
    with pytest.raises(ConfigError, match="width 16 cannot be divided among 3"):
        factories.model(reranker=replace(RERANKER, heads=3))
