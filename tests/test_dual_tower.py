"""The dual tower: every pair of towers, either side absent, scale and bias, and arrays from texts and images."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import IMAGE, SETTINGS, TEXT, TITLES, config, model, photo, png, tokenizer
from PIL import ImageOps

import dualtower
from dualtower import DualTower, ModelConfig, TextTowerConfig
from dualtower.data.transforms.images import open_image, to_pixels
from dualtower.errors import BrokenImage, ConfigError, DataError, UnknownTower
from dualtower.types import Batch, Item

PAIRS = [(text, image) for text in TEXT for image in IMAGE]


def batch(tower: DualTower, rows: int = 3) -> Batch:
    items = [Item(str(i), str(i), (TITLES[i],), png(photo(i, size=(20 + i, 44)))) for i in range(rows)]
    return tower.collator()(items)


# ---- forward


@pytest.mark.parametrize(("text", "image"), PAIRS)
def test_any_text_tower_with_any_image_tower(text: str, image: str) -> None:
    tower = model(text, image).train()
    embeddings = tower(batch(tower))
    assert embeddings.image.shape == embeddings.text.shape == (3, 12)
    torch.testing.assert_close(embeddings.image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embeddings.text.norm(dim=1), torch.ones(3))
    logits = embeddings.scale * embeddings.image @ embeddings.text.T + embeddings.bias
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    assert not [name for name, p in tower.named_parameters() if p.grad is None]  # DDP would wait for it


def test_either_side_may_be_absent() -> None:
    tower = model()
    both = batch(tower)
    whole = tower(both)
    texts, images = tower(replace(both, pixels=None)), tower(replace(both, tokens=None))
    assert texts.image is None and torch.equal(texts.text, whole.text)
    assert images.text is None and torch.equal(images.image, whole.image)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_similarities(similarity: Any) -> None:
    tower = model(similarity=similarity, init_scale=1.0)
    images, texts = tower.encode_image([photo(0), photo(1)]), tower.encode_text(TITLES[:3])
    by_hand = {
        "cosine": lambda: images @ texts.T / np.outer(np.linalg.norm(images, axis=1), np.linalg.norm(texts, axis=1)),
        "dot": lambda: images @ texts.T,
        "euclidean": lambda: -np.linalg.norm(images[:, None] - texts[None], axis=2),
    }[similarity]()
    np.testing.assert_allclose(tower.similarity(images, texts), by_hand, atol=1e-5)
    unit = np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    assert unit == (similarity == "cosine")


def test_embeddings_are_float32_under_autocast() -> None:
    tower = model()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = tower(batch(tower))
    assert embeddings.image.dtype == embeddings.text.dtype == embeddings.scale.dtype == torch.float32
    torch.testing.assert_close(embeddings.text.norm(dim=1), torch.ones(3))


# ---- scale and bias


def test_scale_and_bias_as_configured() -> None:
    plain, siglip = model(), model(init_scale=10.0, init_bias=-10.0)
    assert plain.scale == pytest.approx(1 / 0.07) and siglip.scale == pytest.approx(10)
    assert plain.logit_bias is None and plain(batch(plain)).bias.item() == 0
    assert siglip(batch(siglip)).bias.item() == -10
    assert siglip(batch(siglip)).bias.requires_grad


@pytest.mark.parametrize(("log_scale", "expected"), [(9.0, 50.0), (-9.0, 1 / 50), (1.0, math.e)])
def test_clamp_keeps_the_scale_within_its_limits(log_scale: float, expected: float) -> None:
    tower = model(max_scale=50.0)
    with torch.no_grad():
        tower.logit_scale.fill_(log_scale)
    tower.clamp_()
    assert tower.scale == pytest.approx(expected)


def test_scale_and_bias_stay_in_float32_when_the_model_is_cast() -> None:
    tower = model(init_scale=10.0, init_bias=-9.99)
    scale, bias = tower.logit_scale.item(), tower.logit_bias.item()
    tower.bfloat16()
    assert tower.logit_scale.dtype == tower.logit_bias.dtype == torch.float32
    assert (tower.logit_scale.item(), tower.logit_bias.item()) == (scale, bias)
    assert next(tower.text_head.parameters()).dtype == torch.bfloat16
    assert tower(batch(tower)).text.dtype == torch.float32
    assert tower.double().logit_scale.dtype == torch.float64
    assert tower(batch(tower)).image.dtype == torch.float64


@pytest.mark.parametrize(
    "settings", [{"init_scale": 200.0}, {"init_scale": 0.001}, {"max_scale": 0.5}, {"embed_dim": 0}]
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ModelConfig(**settings)


# ---- building


def test_create_fits_the_vocabulary_to_the_tokenizer() -> None:
    tower = model()
    assert tower.config.text.vocab_size == len(tokenizer()) < TextTowerConfig().vocab_size
    assert tower.config.text.encoder["vocab_size"] == len(tokenizer())


@pytest.mark.parametrize("text", list(TEXT))
def test_tokenizer_larger_than_the_vocabulary_is_refused(text: str) -> None:
    small = replace(config(text), text=replace(TEXT[text], vocab_size=20))
    with pytest.raises(ConfigError, match=r"DualTower\.create"):
        DualTower(small, tokenizer())


def test_completed_config_builds_the_same_model() -> None:
    first = model()
    torch.manual_seed(0)
    assert DualTower.create(first.config, first.tokenizer).fingerprint == first.fingerprint


def test_unknown_towers() -> None:
    with pytest.raises(UnknownTower, match="text tower"):
        DualTower(replace(config(), text=TextTowerConfig(name="lstn")))


def test_copies_are_equal_and_apart() -> None:
    """The loop averages weights in a deep copy."""
    tower = model()
    twin = copy.deepcopy(tower)
    assert twin.fingerprint == tower.fingerprint
    with torch.no_grad():
        twin.logit_scale += 1
    assert twin.fingerprint != tower.fingerprint


def test_fingerprint_depends_on_config_and_weights() -> None:
    assert model(seed=0).fingerprint == model(seed=0).fingerprint
    assert model(seed=0).fingerprint != model(seed=1).fingerprint
    cropped = replace(SETTINGS, resize="crop")
    assert model(seed=0).fingerprint != model(seed=0, image_settings=cropped).fingerprint


def test_layers_above() -> None:
    tower = model("bert", "vit")
    layers = {name: tower.layers_above(name) for name, _ in tower.named_parameters()}
    assert {n for n, above in layers.items() if above == 0} == {
        "logit_scale",
        "text_head.layers.1.weight",
        "image_head.layers.1.weight",
    }


# ---- encoding


@pytest.mark.parametrize("text", list(TEXT))
def test_encode_text_keeps_the_order_whatever_the_batches(text: str) -> None:
    tower = model(text)
    texts = [TITLES[0], " ".join(TITLES[:3]), "mug", TITLES[5], "red"]
    together = tower.encode_text(texts, batch_size=2)
    assert together.shape == (5, 12) and together.dtype == np.float32
    one_by_one = np.concatenate([tower.encode_text([t]) for t in texts])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_every_core_embeds_batches_of_its_own() -> None:
    tower, photos, threads = model(), [photo(i, size=(12, 16)) for i in range(23)], torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = tower.encode_image(photos, batch_size=4)
        np.testing.assert_allclose(together, tower.encode_image(photos, batch_size=23), atol=1e-6)
        texts = [f"{TITLES[i % 6]} {i}" for i in range(40)]
        np.testing.assert_allclose(
            tower.encode_text(texts, batch_size=4), tower.encode_text(texts, batch_size=40), atol=1e-6
        )
        with pytest.raises(BrokenImage, match="row 17"):
            tower.encode_image([*photos[:17], b"no image", *photos[18:]], batch_size=4)
        assert torch.get_num_threads() == 3 and not tower.training
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        tower.encode_image(photos, batch_size=0)


def test_many_images_embed_as_few_do_with_the_weights_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    tower, photos = model().train(), [photo(i, size=(12, 16)) for i in range(9)]
    few = tower.encode_image(photos)
    monkeypatch.setattr("dualtower.models.encoding.MANY", 9)
    np.testing.assert_allclose(tower.encode_image(photos), few, atol=1e-6)
    assert tower.training and all(p.requires_grad for p in tower.parameters())
    with torch.no_grad():
        for parameter in tower.image_tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    many = tower.encode_image(photos)
    assert not np.allclose(many, few, atol=1e-3)
    np.testing.assert_allclose(many, np.concatenate([tower.encode_image([p]) for p in photos]), atol=1e-6)


def test_a_copy_for_inference_is_no_model_to_keep(tmp_path: Path) -> None:
    tower = model()
    quick = tower.for_inference()
    assert quick.for_inference() is quick and quick.fingerprint == tower.fingerprint
    np.testing.assert_array_equal(quick.encode_text(TITLES[:2]), tower.encode_text(TITLES[:2]))
    with pytest.raises(ConfigError, match="copy for inference"):
        quick.save_pretrained(tmp_path / "model")
    tower.save_pretrained(tmp_path / "model")


def test_encode_image_takes_images_paths_and_bytes(tmp_path: Path) -> None:
    tower = model()
    image = photo(3, size=(50, 70))
    image.save(tmp_path / "a.png")
    embedded = tower.encode_image([image, tmp_path / "a.png", str(tmp_path / "a.png"), png(image)], batch_size=3)
    assert embedded.shape == (4, 12) and embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, embedded[:1].repeat(4, 0), atol=1e-6)


def test_encoding_equals_forward() -> None:
    tower = model()
    items = [Item(str(i), str(i), (TITLES[i],), png(photo(i))) for i in range(4)]
    with torch.inference_mode():
        embeddings = tower(tower.collator()(items))
    texts = tower.encode_text([p.texts[0] for p in items])
    np.testing.assert_allclose(texts, embeddings.text.numpy(), atol=1e-6)
    np.testing.assert_allclose(tower.encode_image([p.image for p in items]), embeddings.image.numpy(), atol=1e-6)
    settings = tower.config.image_settings
    assert torch.equal(
        tower.collator()(items).pixels[0], torch.from_numpy(to_pixels(open_image(items[0].image), settings))
    )


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_mirrored_images_embed_alike(similarity: Any) -> None:
    plain = model(similarity=similarity)
    tower = DualTower(replace(plain.config, flip_tta=True), plain.tokenizer).eval()
    tower.load_state_dict(plain.state_dict())
    image = photo(3)
    flipped = ImageOps.mirror(image)
    one, two = plain.encode_image([image, flipped])
    assert not np.allclose(one, two, atol=1e-4)
    mean = (one + two) / 2
    if similarity == "cosine":
        mean /= np.linalg.norm(mean)
    np.testing.assert_allclose(tower.encode_image([image, flipped]), np.stack([mean, mean]), atol=1e-6)
    batch = tower.collator()([Item("0", "0", ("mug",), png(image))])
    assert torch.equal(tower.train()(batch).image, plain.train()(batch).image)  # training embeds what it is given


def test_encoding_leaves_every_module_in_its_mode() -> None:
    tower = model().train()
    tower.image_tower.eval()  # a locked tower
    assert np.array_equal(tower.encode_text(["mug"]), tower.encode_text(["mug"]))  # no dropout
    assert tower.training and tower.text_tower.training and not tower.image_tower.training
    with pytest.raises(DataError):
        tower.encode_text([""])
    assert tower.training


def test_empty_lists_are_empty_arrays() -> None:
    tower = model()
    assert tower.encode_text([]).shape == tower.encode_image([]).shape == (0, 12)


@pytest.mark.parametrize("bad", ["", "  \n", None, 3])
def test_text_without_words_is_named_by_its_position(bad: Any) -> None:
    with pytest.raises(DataError, match=r"text 1 is"):
        model().encode_text(["mug", bad])


def test_a_bare_string_or_path_is_no_list() -> None:
    with pytest.raises(DataError, match=r"encode_text\(\['mug'\]\)"):
        model().encode_text("mug")
    with pytest.raises(DataError, match="list"):
        model().encode_image("mug.jpg")


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match=r"row 1: .*nowhere\.jpg"):
        model().encode_image([photo(), tmp_path / "nowhere.jpg"])


def test_without_tokenizer_images_still_work() -> None:
    tower = DualTower(config()).eval()
    assert tower.encode_image([photo()]).shape == (1, 12)
    with pytest.raises(ConfigError, match="no tokenizer"):
        tower.encode_text(["mug"])


def test_bf16_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    tower = model()
    exact, rounded = tower.encode_text(TITLES[:4]), tower.encode_text(TITLES[:4], bf16=True)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert capsys.readouterr().err == ""


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model().encode_text(TITLES[:4], batch_size=2, progress=True)
    assert "4/4" in capsys.readouterr().err


# ---- the package


def test_public_names() -> None:
    assert dualtower.__all__ == sorted(dualtower.__all__)
    assert set(dualtower.__all__) == {
        "AttributeEncoderConfig",
        "AttributesConfig",
        "Batch",
        "DataConfig",
        "DecoderConfig",
        "ReconstructionConfig",
        "SelfSupervisedConfig",
        "DualTower",
        "Embeddings",
        "EvaluationConfig",
        "FusionConfig",
        "ImageSettings",
        "ImageTowerConfig",
        "LossConfig",
        "MatchingConfig",
        "ModelCard",
        "ModelConfig",
        "Item",
        "RerankerConfig",
        "RunConfig",
        "TaskConfig",
        "TextTowerConfig",
        "TrainConfig",
        "__version__",
        "evaluate",
        "launch",
        "load_card",
        "load_items",
        "run",
    }
    assert all(getattr(dualtower, name) is not None for name in dualtower.__all__)
    with pytest.raises(AttributeError, match="DualTowers"):
        _ = dualtower.DualTowers  # type: ignore[attr-defined]


def test_import_loads_nothing_heavy() -> None:
    code = "import dualtower, sys; print(sorted({'torch', 'timm', 'transformers', 'datasets'} & set(sys.modules)))"
    root = str(Path(dualtower.__file__).parent.parent)
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
