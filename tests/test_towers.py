"""Towers: shapes, padding that never counts, images of any size, weights from elsewhere, and clear refusals."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from factories import IMAGE, SETTINGS, TEXT
from torch import Tensor, nn

from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import ConfigError, UnknownName, UnknownTower
from dualtower.models.towers import (
    IMAGE_TOWERS,
    TEXT_TOWERS,
    ImageTowerConfig,
    ProjectionHead,
    TextTowerConfig,
    Tower,
    create_image_tower,
    create_text_tower,
)
from dualtower.models.towers.base import pool_tokens
from dualtower.models.towers.fuse_batchnorm import fuse_batch_norms
from dualtower.models.towers.image import pretrained_backbone
from dualtower.models.towers.transformer import complete_encoder

LENGTHS = [9, 1, 4, 2]

# (model_type, further options): every family that people start from, tiny.
ENCODERS: list[dict[str, Any]] = [
    {"model_type": "bert", "intermediate_size": 32},
    {"model_type": "roberta", "intermediate_size": 32, "pad_token_id": 1},
    {"model_type": "xlm-roberta", "intermediate_size": 32, "pad_token_id": 1},
    {"model_type": "distilbert", "hidden_dim": 32},
    {"model_type": "mpnet", "intermediate_size": 32, "pad_token_id": 1},
]


def text_tower(config: TextTowerConfig) -> Tower:
    torch.manual_seed(0)
    config = replace(config, vocab_size=50)
    return create_text_tower(complete_encoder(config) if config.name == "bert" else config).eval()


def padded(lengths: list[int], pad: int = 0) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(4, 50, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~mask, pad), mask.long()


def assert_padding_never_counts(tower: Tower, pad: int = 0) -> None:
    ids, mask = padded(LENGTHS, pad)
    together = tower(ids, mask)
    assert together.tokens.shape == (len(LENGTHS), max(LENGTHS), tower.token_width)
    assert together.pooled.shape == (len(LENGTHS), tower.width)
    assert torch.equal(together.mask, mask.bool())
    for row, length in enumerate(LENGTHS):
        alone = tower(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.tokens[row, :length], alone.tokens[0], atol=1e-5, rtol=1e-5)


# ---- text


def test_every_text_tower_is_tested() -> None:
    assert set(TEXT) == set(TEXT_TOWERS)


@pytest.mark.parametrize("pooling", ["auto", "mean", "max", "cls"])
@pytest.mark.parametrize("name", list(TEXT_TOWERS))
def test_padding_a_text_never_changes_its_features(name: str, pooling: Any) -> None:
    config = replace(TEXT[name], pooling=pooling)
    if pooling == "cls" and name != "bert":
        with pytest.raises(ConfigError, match="cls"):
            text_tower(config)
    else:
        assert_padding_never_counts(text_tower(config))


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: e["model_type"])
def test_encoders_of_transformers(encoder: dict[str, Any]) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 20}
    tower = text_tower(TextTowerConfig(max_length=16, encoder={**encoder, **sizes, "vocab_size": 50}))
    assert tower.width == 16
    assert not [name for name, _ in tower.named_parameters() if "pooler" in name]
    assert_padding_never_counts(tower, pad=encoder.get("pad_token_id", 0))


@pytest.mark.parametrize("name", list(TEXT_TOWERS))
def test_every_weight_of_a_text_tower_learns(name: str) -> None:
    tower = text_tower(TEXT[name]).train()
    tower(*padded(LENGTHS)).pooled.square().sum().backward()
    assert not [n for n, p in tower.named_parameters() if p.grad is None]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())


@pytest.mark.parametrize("name", list(TEXT_TOWERS))
def test_bf16_autocast_stays_near_float32(name: str) -> None:
    tower = text_tower(TEXT[name])
    exact = tower(*padded(LENGTHS)).pooled
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tower(*padded(LENGTHS)).pooled
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_pooling_by_hand() -> None:
    tokens = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [99.0, float("nan")]]])
    mask = torch.tensor([[True, True, False]])
    assert pool_tokens(tokens, mask, "mean").tolist() == [[2.0, -3.0]]
    assert pool_tokens(tokens, mask, "max").tolist() == [[3.0, -2.0]]
    assert pool_tokens(tokens, mask, "cls").tolist() == [[1.0, -4.0]]


def test_lstm_reads_both_ways_from_the_real_end() -> None:
    """The backward direction of the first token has seen the last real one, and nothing behind it."""
    tower = text_tower(TEXT["lstm"])
    ids, mask = padded([3, 6])
    changed = ids.clone()
    changed[0, 2] += 1
    behind = ids.clone()
    behind[0, 3:] = 7
    first = tower(ids, mask).tokens[0, 0]
    assert not torch.equal(first, tower(changed, mask).tokens[0, 0])
    assert torch.equal(first, tower(behind, mask).tokens[0, 0])


def test_bag_of_words_forgets_the_order() -> None:
    tower = text_tower(TEXT["bow"])
    ids, mask = padded([6])
    torch.testing.assert_close(tower(ids, mask).pooled, tower(ids.flip(1), mask).pooled)


@pytest.mark.parametrize("name", ["bow", "lstm", "textcnn"])
def test_fresh_token_embeddings_are_small(name: str) -> None:
    """A rare word must not drown the words beside it."""
    embedding = create_text_tower(replace(TEXT[name], vocab_size=2000)).get_submodule("embedding")
    assert 0.015 < embedding.get_parameter("weight").std() < 0.025


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TextTowerConfig(name="lstm", width=15), "odd"),
        (TextTowerConfig(name="lstm", pretrained="google-bert/bert-base-uncased"), "text.name bert"),
        (TextTowerConfig(name="bow", encoder={"model_type": "bert"}), "text.name bert"),
        (TextTowerConfig(name="textcnn", kernels=()), "kernels"),
        (TextTowerConfig(name="textcnn", kernels=(0, 2)), "kernels"),
        (TextTowerConfig(width=16, heads=3), "heads"),
        (TextTowerConfig(pretrained="google-bert/bert-base-uncased"), "DualTower.create"),
        (TextTowerConfig(encoder={"model_type": "bret"}), "bret"),
        (TextTowerConfig(encoder={"model_type": "t5"}), "no text encoder"),
        (TextTowerConfig(encoder={"model_type": "clip"}), "no text encoder"),
        (TextTowerConfig(max_length=64, encoder={"model_type": "bert", "max_position_embeddings": 32}), "32 positions"),
        (
            TextTowerConfig(max_length=31, encoder={"model_type": "roberta", "max_position_embeddings": 32}),
            "30 positions",
        ),
    ],
)
def test_text_settings_that_cannot_be(config: TextTowerConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_tower(config)


def test_unknown_text_tower_names_the_nearest() -> None:
    with pytest.raises(
        UnknownTower, match=r"no text tower 'brt'; known: bert, bow, lstm, textcnn. Did you mean 'bert'\?"
    ):
        create_text_tower(TextTowerConfig(name="brt"))


# ---- image


def image_tower(config: ImageTowerConfig, settings: ImageSettings = SETTINGS) -> Tower:
    torch.manual_seed(0)
    return create_image_tower(config, settings).eval()


def pixels(height: int = SETTINGS.height, width: int = SETTINGS.width, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("resnet", 2 * 1), ("vit", 3 * 2), ("swin", 5 * 4)],  # 40 x 30 at 1/32, 1/16 padded, and 1/8
)
def test_image_shapes(name: str, tokens: int) -> None:
    tower = image_tower(IMAGE[name])
    features = tower(pixels())
    assert features.pooled.shape == (2, tower.width)
    assert features.tokens.shape == (2, tokens, tower.token_width)
    assert features.mask is None


@pytest.mark.parametrize("name", list(IMAGE))
def test_tokens_are_views_and_pool_to_the_pooled(name: str) -> None:
    config = IMAGE[name] if name != "vit" else replace(IMAGE[name], pooling="avg")
    tower = image_tower(config)
    features = tower(pixels())
    assert features.tokens._is_view()
    pooled = features.tokens.mean(1)
    if name == "vit":  # timm normalizes after averaging
        pooled = tower.get_submodule("backbone.fc_norm")(pooled)
    torch.testing.assert_close(pooled, features.pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(IMAGE))
def test_normalizes_like_the_formula(name: str) -> None:
    settings = ImageSettings(height=40, width=30, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    tower = image_tower(IMAGE[name], settings)
    seen: list[Tensor] = []
    backbone: Any = tower.backbone
    first = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(pixels())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (settings.mean, settings.std))
    expected = (pixels().float() / 255 - mean) / std
    torch.testing.assert_close(seen[0][:, :, :40, :30], expected, atol=1e-5, rtol=1e-5)
    assert (seen[0][:, :, :, 30:] == 0).all()  # padding is the mean color
    torch.testing.assert_close(tower(pixels().float()).pooled, tower(pixels()).pooled)


@pytest.mark.parametrize("name", list(IMAGE))
def test_every_weight_of_an_image_tower_learns(name: str) -> None:
    tower = image_tower(IMAGE[name]).train()
    tower(pixels()).pooled.square().sum().backward()
    assert not [n for n, p in tower.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", ["resnet", "vit", "swin"])
@pytest.mark.parametrize("size", [(24, 18), (48, 32)])
def test_images_of_another_size_than_the_settings(name: str, size: tuple[int, int]) -> None:
    tower = image_tower(IMAGE[name])
    assert tower(pixels(*size)).pooled.isfinite().all()


@pytest.mark.parametrize("name", list(IMAGE))
def test_memory_order_does_not_change_the_result(name: str) -> None:
    plain = image_tower(replace(IMAGE[name], channels_last=False))
    last = image_tower(IMAGE[name])
    torch.testing.assert_close(plain(pixels()).pooled, last(pixels()).pooled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling_is_what_was_asked_for(pooling: Any) -> None:
    features = image_tower(replace(IMAGE["resnet"], pooling=pooling))(pixels(64, 64))
    by_hand = features.tokens.mean(1) if pooling == "avg" else features.tokens.amax(1)
    torch.testing.assert_close(features.pooled, by_hand)


@pytest.mark.parametrize("name", list(IMAGE))
def test_a_vector_of_cells_of_an_earlier_stage(name: str) -> None:
    tower = image_tower(replace(IMAGE[name], stage=-2, grid=2)).eval()
    images = pixels(37, 31) if name in ("resnet", "gernet") else pixels()
    with torch.no_grad():
        found, (stage,) = tower(images), tower.stages(images, [tower.stage_count - 2])
    rows, columns = stage.shape[2] / 2, stage.shape[3] / 2
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        top, left = math.floor(row * rows), math.floor(column * columns)
        below, right = math.ceil((row + 1) * rows), math.ceil((column + 1) * columns)
        mean = stage[:, :, top:below, left:right].mean((2, 3))
        torch.testing.assert_close(found.pooled.view(len(images), -1, 4)[:, :, place], mean)
    assert found.pooled.shape[1] == tower.width and found.tokens.shape == (
        len(images),
        stage[0, 0].numel(),
        tower.token_width,
    )
    quick = tower.for_inference()
    with torch.no_grad():
        torch.testing.assert_close(quick(images).pooled, found.pooled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": 0}, r"image\.stage is 0; it counts from the end"),
        ({"grid": 0}, r"image\.grid is 0; it must be at least 1"),
        ({"stage": -2, "pooling": "max"}, r"image\.pooling is max, and a stage or a grid of cells is averaged"),
        ({"stage": -30}, r"image\.stage is -30 and image\.grid 1, and of 'resnet.*' there are \d stages"),
    ],
)
def test_stages_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_tower(replace(IMAGE["resnet"], **change))


def test_pad_to_serves_backbones_that_want_multiples() -> None:
    tower = image_tower(ImageTowerConfig(name="resnet10t", pad_to=32, options=IMAGE["resnet"].options))
    assert tower(pixels()).tokens.shape[1] == 2 * 1
    assert tower(pixels(65, 33)).tokens.shape[1] == 3 * 2


def test_head_wider_than_the_feature_map() -> None:
    tower = image_tower(ImageTowerConfig(name="mobilenetv3_small_050"))
    features = tower(pixels())
    assert features.pooled.shape[1] == tower.width != tower.token_width == features.tokens.shape[2]


def test_options_may_be_lists_as_json_makes_them() -> None:
    options = json.loads(json.dumps(IMAGE["swin"].options))
    one, other = image_tower(IMAGE["swin"]), image_tower(replace(IMAGE["swin"], options=options))
    assert torch.equal(one(pixels()).pooled, other(pixels()).pooled)


def test_unknown_timm_model_names_the_nearest() -> None:
    with pytest.raises(UnknownTower, match=r"no image tower 'resnet81'.*Did you mean 'resnet\d+'"):
        image_tower(ImageTowerConfig(name="resnet81"))


def test_option_that_the_backbone_lacks() -> None:
    with pytest.raises(ConfigError, match=r"resnet10t.*color"):
        image_tower(ImageTowerConfig(name="resnet10t", options={"color": 3}))


def test_a_constructor_of_our_own_comes_before_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Tower):
        def __init__(self, config: ImageTowerConfig, settings: ImageSettings) -> None:
            super().__init__()

        def layers_above(self, name: str) -> int:
            return 1

    monkeypatch.setitem(IMAGE_TOWERS, "own", Own)
    assert isinstance(image_tower(ImageTowerConfig(name="own")), Own)


# ---- copies for inference


def with_statistics(tower: Tower) -> Tower:
    """Batch normalizations that have seen something, each weight its own."""
    generator = torch.Generator().manual_seed(5)
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in [(module.running_mean, -0.2), (module.running_var, 0.5), (module.bias.data, -0.2)]:
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
    return tower


@pytest.mark.parametrize("name", list(IMAGE))
def test_a_copy_for_inference_computes_the_same(name: str) -> None:
    tower = with_statistics(image_tower(IMAGE[name]))
    expected, weights = tower(pixels()), {n: w.clone() for n, w in tower.state_dict().items()}
    copied = tower.for_inference()
    found = copied(pixels())
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=1e-4)
    assert not [n for n, p in copied.named_parameters() if p.requires_grad]
    for n, w in tower.state_dict().items():  # the tower itself is as it was
        assert torch.equal(w, weights[n]) and w.stride() == weights[n].stride()


def test_a_copy_for_inference_has_no_batch_normalization_left() -> None:
    copied = image_tower(IMAGE["resnet"]).for_inference()
    assert not [m for m in copied.modules() if isinstance(m, torch.nn.BatchNorm2d)]


class ReadTwice(torch.nn.Module):
    """The first normalization must stay: somebody else reads its convolution as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
        self.alone, self.alone_norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.alone_norm(self.alone(self.norm(x) + x))


class CalledTwice(torch.nn.Module):
    """One convolution under two normalizations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.conv(x)) + self.other(self.conv(x + 1))


class Undecided(torch.nn.Module):
    """Its path depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.mean() > 0 else x


@pytest.mark.parametrize(("network", "folded"), [(ReadTwice, 1), (CalledTwice, 0), (Undecided, 0)])
def test_only_what_nobody_else_reads_is_folded(network: Any, folded: int) -> None:
    torch.manual_seed(3)
    given = with_statistics(network().eval())
    x = torch.randn(2, 3, 4, 4)
    expected = given(x)
    assert fuse_batch_norms(given, torch.zeros(1, 3, 4, 4)) == folded
    torch.testing.assert_close(given(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "folded"), [("densenet121", 59), ("regnetx_002", 44), ("mobilenetv3_small_050", 34)])
def test_real_networks_are_folded_as_far_as_they_can_be(name: str, folded: int) -> None:
    torch.manual_seed(4)
    network = with_statistics(timm.create_model(name, num_classes=0).eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        assert fuse_batch_norms(network, torch.zeros(1, 3, 64, 64)) == folded
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-3)
    assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_folding_leaves_the_forward_passes_of_other_threads_alone() -> None:
    tower, errors, stop = image_tower(IMAGE["resnet"]), list[Exception](), threading.Event()
    expected = tower(pixels()).pooled

    def infer() -> None:
        while not stop.is_set():
            try:
                torch.testing.assert_close(tower(pixels()).pooled, expected)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=infer)
    thread.start()
    for _ in range(20):
        tower.for_inference()
    stop.set()
    thread.join()
    assert errors == []


# ---- pretrained image weights


def saved_backbone(folder: Path, *, std: float = 0.5) -> tuple[nn.Module, Path]:
    """A backbone with ten classes, saved as timm does it for the Hub."""
    torch.manual_seed(9)
    backbone = timm.create_model("resnet10t", num_classes=10, **IMAGE["resnet"].options)
    folder.mkdir()
    safetensors.torch.save_file(backbone.state_dict(), folder / "model.safetensors")
    cfg = {**backbone.pretrained_cfg, "num_classes": 10, "mean": [0.5] * 3, "std": [std] * 3}
    config = {"architecture": "resnet10t", "num_classes": 10, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return backbone, folder


@pytest.mark.parametrize("as_file", [False, True])
def test_pretrained_weights_from_a_folder_or_file(tmp_path: Path, as_file: bool) -> None:
    original, folder = saved_backbone(tmp_path / "weights")
    source = folder / "model.safetensors" if as_file else folder
    loaded = pretrained_backbone(replace(IMAGE["resnet"], pretrained=str(source)), SETTINGS)
    expected = {k: v for k, v in original.state_dict().items() if not k.startswith("fc.")}
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    if not as_file:
        assert list(loaded.pretrained_cfg["std"]) == [0.5] * 3


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    _, folder = saved_backbone(tmp_path / "weights")
    config = ImageTowerConfig(name="resnet18", pretrained=str(folder), options=IMAGE["resnet"].options)
    with pytest.raises(ConfigError, match=r"type --model\.image\.name resnet10t"):
        pretrained_backbone(config, SETTINGS)


def test_weights_that_are_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(IMAGE["resnet"], pretrained=True)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("No weights exist")))
    with pytest.raises(ConfigError, match="No weights exist"):
        pretrained_backbone(config, SETTINGS)


# ---- layers


@pytest.mark.parametrize("name", list(TEXT_TOWERS))
def test_layers_of_text_towers(name: str) -> None:
    tower = text_tower(TEXT[name])
    layers = {n: tower.layers_above(n) for n, _ in tower.named_parameters()}
    deepest = {"bert": 3, "bow": 1, "lstm": 3, "textcnn": 2}[name]
    assert set(layers.values()) == set(range(1, deepest + 1))
    assert all(n == deepest for k, n in layers.items() if "embedding" in k)


@pytest.mark.parametrize("name", list(IMAGE))
def test_layers_of_image_towers(name: str) -> None:
    tower = image_tower(IMAGE[name])
    layers = {n: tower.layers_above(n) for n, _ in tower.named_parameters()}
    assert min(layers.values()) == 1
    first = next(n for n, m in tower.named_modules() if isinstance(m, nn.Conv2d))
    assert layers[f"{first}.weight"] == max(layers.values()) > 2


# ---- heads


@pytest.mark.parametrize(("kind", "weights"), [("linear", 1), ("mlp", 3)])
def test_heads(kind: Any, weights: int) -> None:
    head = ProjectionHead(kind, 8, embed_dim=5, dropout=0.5).eval()
    assert head(torch.ones(3, 8)).shape == (3, 5)
    assert len(list(head.parameters())) == weights


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_head_norm_makes_the_scale_of_the_features_irrelevant(norm: Any) -> None:
    head = ProjectionHead("linear", 8, embed_dim=5, norm=norm).train()
    features = torch.randn(64, 8)
    assert torch.allclose(head(features), head(1000 * features), atol=1e-3)


def test_unknown_head_norm() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'batch'"):
        ProjectionHead("linear", 8, embed_dim=5, norm="batsh")  # type: ignore[arg-type]


def test_unknown_head() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'linear'"):
        ProjectionHead("liner", 8, embed_dim=5)  # type: ignore[arg-type]
