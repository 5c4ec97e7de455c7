"""Self-supervised objectives: exact across ranks, saved whole, and honest about what was learned."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import factories
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from processes import torchrun
from torch.nn import functional as F

from dualtower import (
    Batch,
    DataConfig,
    DecoderConfig,
    DualTower,
    Item,
    ModelConfig,
    RunConfig,
    SelfSupervisedConfig,
    TrainConfig,
)
from dualtower.data.batches import PixelCache
from dualtower.data.cards import Columns, DataCard
from dualtower.data.items import ItemDataset
from dualtower.data.partners import Partners
from dualtower.data.synthetic.catalog import synthesize_catalog
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.data.transforms.images import open_image, to_pixels
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation import representation
from dualtower.evaluation.config import EvaluationConfig
from dualtower.losses import structural_similarity
from dualtower.models.whitening import image_features, image_tower_alone, whitened, whitening
from dualtower.objectives.self_supervised.simclr import SimCLR
from dualtower.training.batches import augmented
from dualtower.training.building import build_model, build_trainer, with_known_values
from dualtower.training.config import SelfSupervisedName
from dualtower.training.pool import pretraining_pool
from dualtower.training.trainer import Trainer
from dualtower.training.view_samples import view_samples

REPOSITORY = Path(__file__).parent.parent
NAMES = get_args(SelfSupervisedName)
SCRIPT = Path(__file__).with_name("distributed_self_supervised.py")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return steps_of(1, tmp_path_factory.mktemp("one"))


def steps_of(processes: int, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    torchrun(SCRIPT, folder / "end.pt", processes=processes)
    end = torch.load(folder / "end.pt", weights_only=True)
    assert end["world_size"] == processes
    return end["found"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_ranks_learn_what_one_process_learns_of_the_joined_batch(
    processes: int, one_process: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """Gradients, weights, batch statistics, slow copies and the queue, for all positives."""
    ranks = steps_of(processes, tmp_path)
    assert len(one_process) == 13 and ranks.keys() == one_process.keys()
    for objective, expected in one_process.items():
        assert any(name.startswith("gradient of model.image_tower") for name in expected)
        for name, value in expected.items():
            torch.testing.assert_close(ranks[objective][name], value, rtol=1e-9, atol=1e-9, msg=f"{objective}: {name}")


# One process


def images(count: int = 24, products: int = 12) -> ItemDataset:
    """Random photos, two of each product, with a color for a label."""
    rows = [
        Item(
            str(i), f"product {i % products}", (), factories.png(factories.photo(i)), {"color": ["red", "blue"][i % 2]}
        )
        for i in range(count)
    ]
    return ItemDataset.from_rows(rows)


def settings(objective: str, out: Path, *, ssl: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    tower = factories.IMAGE["vit" if objective == "masked" else "gernet"]
    model = ModelConfig(text=None, image=tower, image_settings=factories.SETTINGS, head="none")
    if objective == "autoencoder":
        model = replace(model, decoder=DecoderConfig(width=32, stages=3))
    options = {"steps": 4, "batch_size": 8, "precision": "fp32", "trackers": (), "checkpoint_minutes": None}
    return RunConfig(
        model=model,
        data=DataConfig(workers=0),
        objective=objective,
        ssl=SelfSupervisedConfig(**{"queue": 16, "projection": 8, "decoder_width": 32, **(ssl or {})}),
        train=TrainConfig(**{**options, "augmentation": "simclr", **train}),
        out=out,
    )


def trainer(config: RunConfig, rows: ItemDataset | None = None) -> Trainer:
    torch.manual_seed(0)
    rows = images() if rows is None else rows
    return build_trainer(config, build_model(config, rows), rows, accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("objective", NAMES)
def test_interrupted_and_resumed_it_ends_where_the_uninterrupted_run_does(objective: str, tmp_path: Path) -> None:
    """With all that it owns: slow copies, queue, predictor, decoder."""
    whole = trainer(settings(objective, tmp_path / "whole", checkpoint_steps=2))
    whole.fit()
    config = settings(objective, tmp_path / "part", checkpoint_steps=2)
    stopped = trainer(config)
    step, taken = stopped._step, []

    def until_the_third(*given: Any) -> None:
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(step(*given))

    stopped._step = until_the_third
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = trainer(replace(config, resume=True))
    assert resumed.position.step == 2
    resumed.fit()
    expected, found = whole.objective.state_dict(), resumed.objective.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("objective", NAMES)
def test_it_learns_what_it_is_told_to(objective: str, tmp_path: Path) -> None:
    losses, drawn = [], synthesize_catalog(products=200, views=1, split="test")
    for lr in (1e-9, 3e-3):  # both with the keys of a whole queue
        options = {"steps": 80, "lr": lr, "augmentation": "product", "warmup": 0.0}
        ssl = {"momentum": 0.8, "final_momentum": 0.8}
        made = trainer(settings(objective, tmp_path / str(lr), ssl=ssl, **options), drawn)
        batch = next(made._groups()).batches[0]
        made.fit()
        losses.append(float(made._forward(batch, 0, progress=0.0)[0].detach()))
    assert losses[1] < losses[0] - 0.02 * abs(losses[0])


def test_an_adversary_moves_the_first_view_to_where_its_match_is_hard_to_find(tmp_path: Path) -> None:
    options = {"steps": 12, "warmup": 0.0, "final_augmentation_strength": 0.0}
    made = trainer(settings("simclr", tmp_path, ssl={"adversary": 8.0, "adversary_steps": 3}, **options))
    outcome = made.fit()
    assert outcome.position.step == 12 and all(value.isfinite().all() for value in made.objective.state_dict().values())
    objective, batch = made.objective, next(made._groups()).batches[0]
    first, second = (augmented(batch, made.config.train, None, BatchRNG(n, size=8), size=(40, 30)) for n in (1, 2))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.train()
    moved = objective._attacked(first.pixels, second.pixels, batch.product_codes, BatchRNG(3, size=8))
    assert 7 < (moved - first.pixels).abs().max() < 8.001 and moved.min() >= 0 and moved.max() <= 255
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items()), (
        "no statistics moved"
    )
    assert objective.training and all(part.training for part in objective.projector.modules())
    with torch.no_grad():
        objective.eval()
        views = (objective._projected(pixels) for pixels in (first.pixels, moved, second.pixels))
        clean, attacked, match = views
    assert ((attacked * match).sum(1) < (clean * match).sum(1)).all()
    with pytest.raises(ConfigError, match=r"ssl\.adversary is 8\.0, and only objective 'simclr'"):
        trainer(settings("byol", tmp_path / "byol", ssl={"adversary": 8.0}))
    for wrong in ({"adversary": -1.0}, {"adversary": 1.0, "adversary_steps": 0}):
        with pytest.raises(ConfigError, match="give a bound from 0, which is off, and at least one step"):
            SelfSupervisedConfig(**wrong)


def test_augmentation_grows_weaker_to_the_end(tmp_path: Path) -> None:
    made = trainer(settings("simclr", tmp_path, augmentation_strength=0.8, final_augmentation_strength=0.2))
    batch, weak = next(made._groups()).batches[0], replace(made.config.train, augmentation_strength=0.2)

    def seen(train: TrainConfig, progress: float) -> torch.Tensor:
        return augmented(batch, train, None, BatchRNG(1, size=8), size=(40, 30), progress=progress).pixels

    assert torch.equal(seen(made.config.train, 1.0), seen(weak, 0.0))
    assert not torch.equal(seen(made.config.train, 0.5), seen(made.config.train, 1.0))
    with pytest.raises(ConfigError, match=r"train\.final_augmentation_strength is -0\.5; it must not be negative"):
        replace(weak, final_augmentation_strength=-0.5)


def test_only_the_tower_is_saved(tmp_path: Path) -> None:
    model = trainer(settings("moco", tmp_path)).fit().model
    assert {name.split(".")[0] for name in model.state_dict()} == {"image_tower", "logit_scale"}
    assert model.config.embed_dim == model.image_tower.width == model.encode_image([factories.photo()]).shape[1]


def test_features_are_whitened(tmp_path: Path) -> None:
    alone = trainer(settings("autoencoder", tmp_path)).fit().model
    photos = [factories.photo(i) for i in range(60)]
    features = image_features(alone, photos)
    assert np.abs(np.linalg.norm(features, axis=1) - 1).max() > 0.01, "of their own length"
    made = whitened(alone, features)
    mean, deviation, directions = whitening(features)
    expected = (features - mean) / deviation @ directions
    covariance = np.cov(expected.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-6, "what is left is uncorrelated"
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(made.encode_image(photos), expected, atol=1e-4)
    again = DualTower.from_pretrained(made.save_pretrained(tmp_path / "model"))
    np.testing.assert_allclose(again.encode_image(photos[:5]), expected[:5], atol=1e-4)
    bare = image_tower_alone(made, decoder=made.config.decoder)
    np.testing.assert_allclose(bare.encode_image(photos[:5]), alone.encode_image(photos[:5]), atol=1e-6)
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in alone.state_dict().items())
    with pytest.raises(ConfigError, match="1 images"):
        whitened(alone, features[:1])


def test_what_the_head_makes_of_features_is_the_embedding() -> None:
    """The report embeds no image twice: the model's vectors are made of its bare ones."""
    photos = [factories.photo(i) for i in range(60)]
    tower = image_tower_alone(factories.model()).eval()
    features = image_features(tower, photos)
    model = whitened(tower, features)
    made = representation._under_the_head(model, representation._Vectors(features, features[:5]))
    assert np.allclose(representation._unit(made.train), model.encode_image(photos), atol=1e-5)
    assert np.array_equal(made.test, made.train[:5])


def test_the_finished_vector_is_of_an_earlier_stage(tmp_path: Path) -> None:
    made = trainer(settings("simclr", tmp_path))
    trained, rows = made.fit().model, images()
    finished = made.objective.finished(trained, rows, EvaluationConfig())
    tower = trained.image_tower
    pixels = torch.stack(
        [torch.from_numpy(to_pixels(open_image(image), trained.config.image_settings)) for image in rows.images]
    )
    with torch.no_grad():
        (stage,) = tower.stages(pixels, [tower.stage_count - 2])
    cells = F.adaptive_avg_pool2d(stage, 2).flatten(1).numpy()
    expected = representation._whitened(representation._Vectors(cells, cells)).test
    np.testing.assert_allclose(finished.encode_image(rows.images), representation._unit(expected), atol=1e-4)
    again = DualTower.from_pretrained(finished.save_pretrained(tmp_path / "model"))
    np.testing.assert_allclose(again.encode_image(rows.images), finished.encode_image(rows.images), atol=1e-5)
    for name, value in trained.image_tower.state_dict().items():
        assert torch.equal(finished.image_tower.state_dict()[name], value), "the tower stays whole"
    last = SimCLR(trained, SelfSupervisedConfig(stage=-1, grid=1)).finished(trained, rows, EvaluationConfig())
    assert last.config.image == trained.config.image
    assert tower.widest_grid(-2, 4 * stage.shape[1]) == 2 and tower.widest_grid(-2, 4 * stage.shape[1] - 1) == 1
    drawing = trainer(settings("autoencoder", tmp_path / "drawing"))
    drawn = drawing.objective.finished(drawing.fit().model, rows, EvaluationConfig())
    assert drawn.config.image.is_whole and drawn.decoder is not None, "a decoder draws from the last stage"


def test_stages_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"ssl\.stage is -9, and the image tower has 3 stages; give one from -1 to -3"
    ):
        trainer(settings("simclr", tmp_path, ssl={"stage": -9}))
    for wrong in ({"stage": 0}, {"grid": 0}):
        with pytest.raises(ConfigError, match="a stage counts from the end, from -1, and there is at least one cell"):
            SelfSupervisedConfig(**wrong)
    whole = settings("simclr", tmp_path)
    cut = replace(whole, model=replace(whole.model, image=replace(whole.model.image, stage=-2)))
    with pytest.raises(ConfigError, match=r"image\.stage is -2: stages behind it would learn nothing"):
        trainer(cut)


def test_a_bottleneck_narrows_what_a_decoder_draws_from(tmp_path: Path) -> None:
    config = settings("autoencoder", tmp_path)
    narrow = replace(config, model=replace(config.model, decoder=DecoderConfig(width=32, stages=3, bottleneck=1)))
    model = trainer(narrow).fit().model
    pixels = torch.stack([torch.from_numpy(np.asarray(factories.photo(i)).transpose(2, 0, 1).copy()) for i in range(9)])
    codes = model.decoder.narrow(model.image_features(pixels).pooled)
    assert codes.shape == (9, 1) and model.reconstruct(pixels).shape == pixels.shape
    with pytest.raises(ConfigError, match="bottleneck is 0"):
        DecoderConfig(bottleneck=0)


def test_a_card_says_how_each_row_is_augmented(tmp_path: Path) -> None:
    rule = {"by": "color", "red": "none", "default": "apparel"}
    card = DataCard("shop", Columns(image="image", attributes=["color"]), augmentation=rule)
    config = with_known_values(settings("simclr", tmp_path, augmentation="card"), card, images())
    assert config.train.augmentation_rule == rule
    made, seen = trainer(config), []
    made.objective.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    batch = next(made._groups()).batches[0]
    made._forward(batch, 0, progress=0.0)
    red = torch.tensor([int(row) % 2 == 0 for row in batch.ids])
    assert red.any() and not red.all()
    for view in (seen[0].pixels, *seen[0].more_views):
        assert torch.equal(view[red], batch.pixels[red].float())
        assert not (view[~red] == batch.pixels[~red].float()).flatten(1).all(1).any()
    silent = DataCard("shop", Columns(image="image"))
    with pytest.raises(ConfigError, match="data card 'shop' has none"):
        with_known_values(config, silent, images())
    with pytest.raises(UnknownName, match="colour"):
        with_known_values(config, replace(card, augmentation={**rule, "by": "colour"}), images())


def test_views_are_shown_where_an_image_has_broken_and_no_cache_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(row, image=b"broken") if row.id == "3" else row for row in images(6)]
    config = settings("simclr", tmp_path)
    objective = trainer(config).objective
    monkeypatch.setattr(PixelCache, "if_there_is_room", lambda *_, **__: pytest.fail("a cache for six images"))
    (section,) = view_samples(config, objective, ItemDataset.from_rows(rows), None)
    assert len(section.images) == 6


def test_a_slow_copy_moves_ever_less(tmp_path: Path) -> None:
    objective = trainer(settings("byol", tmp_path, ssl={"momentum": 0.9, "final_momentum": 1.0})).objective
    assert [round(objective.momentum(progress), 3) for progress in (0, 0.5, 1, 2)] == [0.9, 0.95, 1.0, 1.0]
    for parameter in objective.projector.parameters():
        parameter.data.add_(1.0)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.after_step([], 0.5)
    for name, value in objective.slow_projector.named_parameters():
        wanted = before[f"slow_projector.{name}"].lerp(before[f"projector.{name}"], 0.05)
        torch.testing.assert_close(value, wanted)
    assert not any(parameter.requires_grad for parameter in objective.slow_tower.parameters())


def test_the_second_view_is_of_another_image_of_the_product(tmp_path: Path) -> None:
    rows = images()
    for positives, alike in (("product", 2), ("label", 12)):
        ssl = {"positives": positives, "label": "color" if positives == "label" else None}
        config = settings("simclr", tmp_path / positives, ssl=ssl, augmentation="none")
        made = trainer(config, rows)
        batch = next(iter(made.loader))
        known = made.objective.model.collator()([rows[row] for row in range(len(rows))]).pixels
        for pixels, partner, row in zip(batch.pixels, batch.more_views[0], map(int, batch.ids), strict=True):
            (found,) = [i for i in range(len(rows)) if torch.equal(known[i], partner)]
            assert torch.equal(pixels, known[row]) and found != row
            assert found % (12 if positives == "product" else 2) == row % (12 if positives == "product" else 2), alike


def test_partners_are_drawn_evenly_and_from_several_images_of_a_row() -> None:
    rows = [Item(str(i), "same" if i < 3 else "alone", (), factories.png(factories.photo(i))) for i in range(3)]
    rows.append(Item("3", "alone", (), b"a", more_images=(b"b", b"c")))
    rows.append(Item("4", "single", (), b"d"))
    items = ItemDataset.from_rows(rows)
    partners = Partners(items, items.codes)
    draws = np.random.default_rng(0).integers(2**31, size=3000).tolist()
    of_first = Counter(partners.of(items.visit(0, draw), 0, draw).id for draw in draws)
    assert of_first.keys() == {"1", "2"} and min(of_first.values()) > 1300
    pairs = Counter((items.visit(3, draw).image, partners.of(items.visit(3, draw), 3, draw).image) for draw in draws)
    assert len(pairs) == 6 and all(one != other for one, other in pairs) and min(pairs.values()) > 350
    assert partners.of(items.visit(4, 5), 4, 5).image == b"d"
    alone = Partners(items, np.full(5, -1))
    assert all(alone.of(items.visit(row, 7), row, 7).id == str(row) for row in range(5)), "-1 is nobody's label"


# Masked and reconstructed


def test_the_encoder_sees_no_hidden_patch(tmp_path: Path) -> None:
    objective = trainer(settings("masked", tmp_path)).objective.eval()
    pixels = torch.rand(4, 3, 40, 30) * 255  # neither side is a multiple of the patch
    batch = Batch(tuple("abcd"), torch.arange(4), pixels=pixels)
    outputs = objective(batch, BatchRNG(0, size=4))
    count = outputs.hidden.shape[1]
    assert outputs.hidden.sum(1).tolist() == [count - objective.visible] * 4 and count == 3 * 2
    images = objective.model.image_tower.normalized(pixels)
    order = objective._order(batch, BatchRNG(0, size=4), count)
    seen = objective._encoded(images, order[:, : objective.visible])
    spoiled = objective._patches(images)
    spoiled[outputs.hidden] = 9.0
    rows, columns = objective.grid
    height, width = objective.patch
    whole = spoiled.reshape(4, rows, columns, 3, height, width).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    torch.testing.assert_close(objective._encoded(whole, order[:, : objective.visible]), seen)
    torch.testing.assert_close(
        objective._encoded(images, order).sort(1)[0],
        objective._encoded(images, order.flip(1)).sort(1)[0],
        msg="the order of patches does not matter",
    )
    loss = objective.loss(outputs, batch)
    elsewhere = outputs._replace(drawn=torch.where(outputs.hidden.unsqueeze(2), outputs.drawn, 7.0))
    torch.testing.assert_close(objective.loss(elsewhere, batch), loss)


def test_a_decoder_is_saved_and_draws(tmp_path: Path) -> None:
    model = trainer(settings("autoencoder", tmp_path)).fit().model
    pixels = torch.from_numpy(np.asarray(factories.photo()).transpose(2, 0, 1).copy()).unsqueeze(0)
    drawn = model.reconstruct(pixels)
    assert drawn.shape == pixels.shape and drawn.min() >= 0 and drawn.max() <= 255
    again = DualTower.from_pretrained(model.save_pretrained(tmp_path / "model"))
    torch.testing.assert_close(again.reconstruct(pixels), drawn)
    assert again.towers_fingerprint == model.towers_fingerprint
    with pytest.raises(ConfigError, match="pretrain_autoencoder"):
        factories.model().reconstruct(pixels)


def test_structural_similarity_is_that_of_the_paper() -> None:
    first, second = (torch.rand(1, 1, 14, 13, dtype=torch.float64) for _ in "ab")
    weights = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    window = torch.outer(weights, weights) / weights.sum() ** 2
    expected = torch.empty(4, 3, dtype=torch.float64)
    for y in range(4):
        for x in range(3):
            a, b = (image[0, 0, y : y + 11, x : x + 11] for image in (first, second))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + 0.01**2) * (2 * both + 0.03**2)
            expected[y, x] = top / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
    torch.testing.assert_close(structural_similarity(first, second)[0, 0], expected)
    assert structural_similarity(first, first).min() > 1 - 1e-9
    assert structural_similarity(first[..., :4], first[..., :4]).shape == (1, 1, 4, 2), "a window within the image"


# What goes on from it


def test_a_dual_tower_starts_from_it(tmp_path: Path) -> None:
    made = trainer(settings("simclr", tmp_path))
    start = made.objective.finished(made.fit().model, images(), EvaluationConfig())
    assert (start.config.image.stage, start.config.image.grid, start.config.head) == (-2, 2, "linear")
    folder = start.save_pretrained(tmp_path / "model")
    config = replace(
        factories.config("bow", "gernet"), image=replace(factories.IMAGE["gernet"], pretrained=str(folder))
    )
    model = DualTower.create(config, factories.tokenizer())
    for name, value in start.image_tower.state_dict().items():
        assert torch.equal(model.image_tower.state_dict()[name], value)
    other = replace(config, image=replace(factories.IMAGE["resnet"], pretrained=str(folder)))
    with pytest.raises(ConfigError, match=r"another image tower.*gernet_s"):
        DualTower.create(other, factories.tokenizer())
    of_texts = DualTower(ModelConfig(text=factories.TEXT["bow"], image=None), factories.tokenizer())
    texts = of_texts.save_pretrained(tmp_path / "texts")
    with pytest.raises(ConfigError, match="texts alone"):
        DualTower.create(replace(config, image=replace(config.image, pretrained=str(texts))), factories.tokenizer())


# Which rows are trained on


def test_what_is_measured_is_not_trained_on() -> None:
    train, test = images(8, products=8), images(4, products=4)
    renamed = ItemDataset.from_rows([replace(row, id=f"test {row.id}") for row in test], split="test")
    pool = pretraining_pool(train, [renamed], transductive=False)
    assert list(pool.items.ids) == ["4", "5", "6", "7"] and pool.left_out == 4
    assert "4 rows of the training split were left out" in pool.section().markdown
    everything = pretraining_pool(train, [renamed], transductive=True)
    assert len(everything.items) == 12 and "**Transductive**" in everything.section().markdown
    assert everything.section().figures["fingerprint"] == everything.items.fingerprint != pool.items.fingerprint
    with pytest.raises(DataError, match="all 8 images"):
        pretraining_pool(train, [ItemDataset.from_rows([replace(r, id=f"x{r.id}") for r in train])], transductive=False)


# A folder of images and nothing else, from the command line


def photos(folder: Path, count: int = 40, *, equal: bool = False) -> Path:
    for i in range(count):
        place = folder / ("mugs" if i % 2 else "hats") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(factories.png(factories.photo(0 if equal else i)))
    return folder


def pretrain(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    recipe = [sys.executable, str(REPOSITORY / "recipes" / "pretrain_simclr.py"), "--smoke", "--train.cpu-threads", "1"]
    small = ["--data.card", "image_folder"]
    if "--base" not in options:
        small += ["--model.image.options", json.dumps(factories.IMAGE["gernet"].options)]
    small += ["--train.batch-size", "16", "--evaluation.bootstrap", "20", "--train.trackers", "--data.workers", "0"]
    return subprocess.run(
        [*recipe, *small, "--data.source", str(source), "--out", str(out), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_bare_folder_is_enough(tmp_path: Path) -> None:
    done = pretrain(photos(tmp_path / "photos"), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["pool"]["rows"] > 20 and not figures["pool"]["transductive"]
    table = figures["representation"]
    columns = {"the model", "as trained", "random weights", "raw 16x16 pixels", "raw pixels, whitened"}
    assert table["kNN-10 accuracy: folder"].keys() == columns
    assert set(table["spread"]["the model"]) == {"deviation", "effective_rank"}
    report = (tmp_path / "run" / "report.md").read_text()
    for name in ("curves.png", "neighbors_1.png", "views_1.png"):
        assert name in report and (tmp_path / "run" / "report" / name).exists()
    lines = list(map(json.loads, (tmp_path / "run" / "history.jsonl").open()))
    assert any("effective_rank" in line.get("validation", {}) for line in lines)
    assert "kNN-10 accuracy" in (tmp_path / "run" / "model" / "README.md").read_text()
    from_it = ["--base", str(tmp_path / "run" / "model"), "--ssl.transductive", "--ssl.no-whiten"]
    again = pretrain(tmp_path / "photos", tmp_path / "again", *from_it)
    assert again.returncode == 0, again.stderr
    assert "**Transductive**" in (tmp_path / "again" / "report.md").read_text()
    finished, bare = (
        json.loads((tmp_path / run / "model" / "config.json").read_text())["model"] for run in ("run", "again")
    )
    assert (finished["head"], finished["image"]["stage"], finished["image"]["grid"]) == ("linear", -2, 2)
    assert bare["head"] == "none" and bare["image"].get("stage", -1) == -1 and bare["image"].get("grid", 1) == 1
    assert "scale" not in (tmp_path / "again" / "history.jsonl").read_text(), "no scale is trained"


@pytest.mark.slow
def test_a_collapsed_run_says_so_and_fails(tmp_path: Path) -> None:
    done = pretrain(photos(tmp_path / "photos", equal=True), tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert "DataError" in done.stderr and "held out as well" in done.stderr, "equal images cannot be told apart"
    done = pretrain(tmp_path / "photos", tmp_path / "run", "--ssl.transductive")
    assert done.returncode == 1 and "CollapsedRun" in done.stderr and "effective rank" in done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert "**Collapsed**" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queue": 20}, "--ssl.queue 24|--ssl.queue 16"),
        ({"queue": 4}, "--ssl.queue 8"),
    ],
)
def test_a_queue_that_does_not_fit_the_batch_is_refused(change: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        trainer(settings("moco", tmp_path, ssl=change))


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fewer than one batch"):
        trainer(settings("simclr", tmp_path), images(1))
    with pytest.raises(ConfigError, match="batch of one"):
        trainer(settings("simclr", tmp_path, batch_size=1))
    with pytest.raises(ConfigError, match="hides patches of a ViT"):
        trainer(replace(settings("masked", tmp_path), model=settings("simclr", tmp_path).model))
    with pytest.raises(ConfigError, match="hides none"):
        trainer(settings("masked", tmp_path, ssl={"masked": 0.01}))
    with pytest.raises(ConfigError, match="DecoderConfig"):
        trainer(replace(settings("autoencoder", tmp_path), model=settings("simclr", tmp_path).model))
    with pytest.raises(ConfigError, match=r"--model\.head none"):
        trainer(replace(settings("byol", tmp_path), model=ModelConfig(text=None, image=factories.IMAGE["gernet"])))
    with pytest.raises(ConfigError, match="no image tower"):
        texts = ModelConfig(text=factories.TEXT["bow"], image=None, head="none")
        SimCLR(DualTower(texts, factories.tokenizer()), SelfSupervisedConfig())
    with pytest.raises(ConfigError, match="rows of in-memory have none"):
        trainer(settings("simclr", tmp_path), ItemDataset.from_rows([Item(str(i), str(i), ("a",)) for i in range(9)]))
    with pytest.raises(UnknownName, match="colour"):
        trainer(settings("simclr", tmp_path, ssl={"positives": "label", "label": "colour"}))
    for wrong in ({"positives": "label"}, {"label": "color"}, {"temperature": 0.0}, {"momentum": 1.5}, {"masked": 1.0}):
        with pytest.raises(ConfigError, match=r"ssl\."):
            SelfSupervisedConfig(**wrong)
    model = trainer(settings("simclr", tmp_path)).fit().model
    with pytest.raises(ConfigError, match="no text tower"):
        model.encode_text(["a mug"])
