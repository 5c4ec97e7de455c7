"""Corruptions, projected gradient descent, and `dualtower robustness` from the card to the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import catalogs
import factories
import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import command
from torch import nn

from dualtower import DualTower, ImageSettings, Item, ModelConfig
from dualtower.cli.robustness import Robustness as Command
from dualtower.data.items import ItemDataset
from dualtower.data.synthetic.catalog import synthesize_catalog
from dualtower.data.transforms.images import open_image, to_pixels
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation import RobustnessConfig, evaluate, evaluate_robustness
from dualtower.evaluation.robustness import embedding
from dualtower.evaluation.robustness.attack import pgd
from dualtower.evaluation.robustness.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from dualtower.evaluation.robustness.result import CLEAN, MEAN, PGD, Condition
from dualtower.evaluation.robustness.retrieval_attack import odds_against
from dualtower.models.precision import TowerPrecision
from dualtower.types import Batch

own_cache = catalogs.own_cache
SETTINGS = ImageSettings(height=40, width=30)
CARD = """---
name: drawn
title: The synthetic catalog
source: {synthetic: en, options: {products: 200}}
columns: {id: id, product_id: product_id, text: title, image: image}
splits: {named: {train: train, validation: validation, test: test}}
---
"""


@pytest.fixture(scope="module")
def drawn() -> ItemDataset:
    return synthesize_catalog(products=200, split="test")


@pytest.fixture(scope="module")
def pixels(drawn: ItemDataset) -> np.ndarray:
    """Twelve drawn products, uint8 ``[12, 3, 40, 30]``."""
    return np.stack([to_pixels(open_image(drawn.images[row]), SETTINGS) for row in range(12)])


@pytest.fixture(scope="module")
def spread() -> DualTower:
    return factories.spread_model()


KEYS = [f"row-{number}" for number in range(12)]


# --- corruptions ---


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_strength_changes_more(name: str, pixels: np.ndarray) -> None:
    before = pixels.copy()
    changed = [corrupt(pixels, name, strength, keys=KEYS) for strength in STRENGTHS]
    assert all(batch.dtype == np.uint8 and batch.shape == pixels.shape for batch in changed)
    apart = [np.abs(batch.astype(int) - pixels).mean() for batch in changed]
    assert all(less < more for less, more in pairwise([0, *apart])), apart
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_row_is_corrupted_alike_in_any_batch(name: str, pixels: np.ndarray) -> None:
    together = corrupt(pixels, name, 4, keys=KEYS, seed=3)
    for order in ([0], [11, 5, 2], range(6, 12)):
        some = list(order)
        alone = corrupt(pixels[some], name, 4, keys=[KEYS[place] for place in some], seed=3)
        assert np.array_equal(alone, together[some])


@pytest.mark.parametrize("name", ["noise", "occlusion"])
def test_rows_and_seeds_differ_in_what_is_random(name: str, pixels: np.ndarray) -> None:
    gray = np.full((2, 3, 40, 30), 60, np.uint8)
    first, second = corrupt(gray, name, 2, keys=["a", "b"])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, corrupt(gray, name, 2, keys=["a", "b"], seed=1)[0])


def test_noise_has_the_deviation_of_its_level() -> None:
    gray = np.full((4, 3, 64, 64), 128, np.uint8)
    for strength, level in zip((1, 2), CORRUPTIONS["noise"].levels, strict=False):
        assert corrupt(gray, "noise", strength, keys=KEYS[:4]).std() == pytest.approx(255 * level, rel=0.02)


def test_blur_keeps_plain_images_and_the_sum_of_a_point() -> None:
    plain = np.full((1, 3, 40, 30), 77, np.uint8)
    assert np.array_equal(corrupt(plain, "blur", 5, keys=["a"]), plain)
    point = np.zeros((1, 3, 41, 31), np.uint8)
    point[:, :, 20, 15] = 255
    seen = corrupt(point, "blur", 5, keys=["a"])[0, 0].astype(int)
    assert np.array_equal(seen, seen[::-1]) and np.array_equal(seen, seen[:, ::-1])
    assert seen.sum() == pytest.approx(255, abs=8) and seen.max() < 60


def test_brightness_keeps_hue_and_saturation() -> None:
    color = np.zeros((2, 3, 2, 2), np.uint8)
    color[0] = np.array([120, 60, 30])[:, None, None]  # and the second image is black
    bright, black = corrupt(color, "brightness", 2, keys=["a", "b"])
    assert bright[:, 0, 0].tolist() == [171, 86, 43]  # 120 + 0.2 * 255, the others by the same factor
    assert black[:, 0, 0].tolist() == [51, 51, 51]


def test_jpeg_is_what_a_jpeg_of_that_quality_holds(pixels: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(pixels[0].transpose(1, 2, 0))
    image.save(tmp_path / "q7.jpg", quality=7)
    assert np.array_equal(
        corrupt(pixels[:1], "jpeg", 5, keys=["a"])[0], np.asarray(Image.open(tmp_path / "q7.jpg")).transpose(2, 0, 1)
    )


def test_occlusion_covers_its_share_and_grows_in_place() -> None:
    white = np.full((8, 3, 80, 60), 255, np.uint8)
    before = np.zeros((8, 80, 60), bool)
    for strength, level in zip(STRENGTHS, CORRUPTIONS["occlusion"].levels, strict=True):
        covered = corrupt(white, "occlusion", strength, keys=KEYS[:8])[:, 0] == 127
        assert covered.mean() == pytest.approx(level, abs=0.03)
        assert (covered | before).sum() == covered.sum()
        before = covered


def test_what_corrupt_refuses(pixels: np.ndarray) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'noise'"):
        corrupt(pixels, "nose", 1, keys=KEYS)
    for strength in (0, 6):
        with pytest.raises(ConfigError, match="give 1 to 5"):
            corrupt(pixels, "noise", strength, keys=KEYS)
    with pytest.raises(ConfigError, match="11 keys"):
        corrupt(pixels, "noise", 1, keys=KEYS[:-1])
    with pytest.raises(ConfigError, match="float32"):
        corrupt(pixels.astype(np.float32), "noise", 1, keys=KEYS)


# --- the attack ---


def embed(model: DualTower, batch: torch.Tensor) -> torch.Tensor:
    size = len(batch)
    image = model(Batch(ids=("",) * size, product_codes=torch.arange(size), pixels=batch)).image
    assert image is not None
    return image


def away(model: DualTower, pixels: torch.Tensor) -> Any:
    """A loss that is high far from the clean embeddings."""
    with torch.no_grad():
        clean = embed(model, pixels)
    return lambda changed: -(embed(model, changed) * clean).sum(1)


def start(like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def states(model: nn.Module) -> Mapping[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("epsilon", [1, 4])
def test_an_attack_stays_in_its_ball_and_beats_noise(epsilon: int, pixels: np.ndarray, spread: DualTower) -> None:
    clean = torch.from_numpy(pixels)
    loss = away(spread, clean)
    before = states(spread)
    found = pgd(clean, loss, epsilon=epsilon, start=start(clean))
    assert found.dtype == torch.float32 and not found.requires_grad
    assert (found - clean).abs().max() <= epsilon and found.min() >= 0 and found.max() <= 255
    noise = [(clean + epsilon * start(clean, seed).sign()).clamp(0, 255) for seed in range(5)]
    with torch.no_grad():
        assert (loss(found) > torch.stack([loss(some) for some in noise]).amax(0)).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in spread.parameters())
    assert not spread.training and all(torch.equal(value, before[name]) for name, value in spread.state_dict().items())


def test_more_steps_are_never_weaker(pixels: np.ndarray, spread: DualTower) -> None:
    clean = torch.from_numpy(pixels)
    loss = away(spread, clean)
    highest = torch.full((len(clean),), -torch.inf)
    for steps in (1, 2, 3, 5, 8):  # a step of the whole ball jumps to and fro
        with torch.no_grad():
            now = loss(pgd(clean, loss, epsilon=4, steps=steps, step_size=8, start=start(clean)))
        assert (now >= highest).all()
        highest = now


def test_the_default_step_does_not_depend_on_the_number_of_steps() -> None:
    visited: dict[int, list[torch.Tensor]] = {}
    for steps in (2, 4):
        visited[steps] = []

        def loss(pixels: torch.Tensor, seen: list[torch.Tensor] = visited[steps]) -> torch.Tensor:
            seen.append(pixels.detach().clone())
            return pixels.sum((1, 2, 3))

        pgd(torch.full((1, 3, 2, 2), 100.0), loss, epsilon=8, steps=steps)
    assert [place.mean().item() for place in visited[4]] == [100, 102, 104, 106, 108]
    assert all(map(torch.equal, visited[2], visited[4]))


def test_an_attack_is_the_same_again_and_row_by_row(pixels: np.ndarray, spread: DualTower) -> None:
    clean = torch.from_numpy(pixels[:4])
    first = start(clean)
    together = pgd(clean, away(spread, clean), epsilon=2, start=first)
    assert torch.equal(together, pgd(clean, away(spread, clean), epsilon=2, start=first))
    alone = pgd(clean[1:2], away(spread, clean[1:2]), epsilon=2, steps=1, start=first[1:2])
    assert torch.allclose(alone, pgd(clean, away(spread, clean), epsilon=2, steps=1, start=first)[1:2], atol=1e-4)


def test_an_attack_computes_in_float32_wherever_it_is_called(pixels: np.ndarray, spread: DualTower) -> None:
    clean, seen = torch.from_numpy(pixels[:4]), set()

    def loss(changed: torch.Tensor) -> torch.Tensor:
        product = changed.flatten(1) @ changed.flatten(1).T
        seen.add(product.dtype)
        return product.sum(1)

    plain = pgd(clean, loss, epsilon=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pgd(clean, loss, epsilon=2), plain)
    with torch.inference_mode():
        assert torch.equal(pgd(clean, loss, epsilon=2), plain)
    assert seen == {torch.float32}


def test_a_loss_of_the_whole_batch_keeps_the_best_batch(pixels: np.ndarray, spread: DualTower) -> None:
    """As contrastive pretraining has one, where every row is a negative of the others."""
    clean = torch.from_numpy(pixels[:6])
    with torch.no_grad():
        others = embed(spread, clean)

    def loss(changed: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(10 * embed(spread, changed) @ others.T, torch.arange(6))

    found = [pgd(clean, loss, epsilon=2, steps=steps, step_size=4, start=start(clean)) for steps in (1, 3, 6)]
    with torch.no_grad():
        values = [loss(batch).item() for batch in (clean.float(), *found)]
    assert values[0] < values[1] and values == sorted(values)


def test_a_row_whose_loss_is_no_number_stays_as_it_was() -> None:
    clean = torch.full((2, 3, 2, 2), 50.0)
    broken = torch.tensor([torch.nan, 1.0])
    found = pgd(clean, lambda changed: changed.sum((1, 2, 3)) * broken, epsilon=3)
    assert torch.equal(found[0], clean[0]) and (found[1] == 53).all()


def test_what_the_attack_refuses() -> None:
    clean = torch.zeros(2, 3, 4, 4)
    for wrong in ({"epsilon": 0}, {"epsilon": 1, "steps": 0}, {"epsilon": 1, "step_size": -1.0}):
        with pytest.raises(ConfigError, match="numbers above 0"):
            pgd(clean, lambda changed: changed.sum((1, 2, 3)), **wrong)
    with pytest.raises(ConfigError, match=r"shape \[2, 3\]"):
        pgd(clean, lambda changed: changed.sum((2, 3)), epsilon=1)


def test_the_odds_are_those_of_the_softmax() -> None:
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * 3
    relevant, absent = torch.zeros(3, 6, dtype=torch.bool), torch.zeros(3, 6, dtype=torch.bool)
    relevant[0, :2] = relevant[1, 3] = relevant[2, :] = absent[0, 1] = True
    found = odds_against(scores, relevant, absent)
    for row in (0, 1):
        kept = ~absent[row]
        right = torch.softmax(scores[row][kept], 0)[relevant[row][kept]].sum()
        assert float(torch.sigmoid(found[row])) == pytest.approx(1 - float(right), abs=1e-6)
    assert found[2] == -torch.inf
    sure = torch.tensor([[500.0, 0.0]], requires_grad=True)
    odds_against(sure, torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.bool)).sum().backward()
    assert sure.grad is not None and sure.grad.tolist() == [[-1.0, 1.0]]  # a cross-entropy's would be 0


# --- the measurement ---


QUICK = RobustnessConfig(strengths=(1, 5), epsilons=(4,), steps=4, rows=None, bootstrap=20)


def value(measured: Any, metric: str = "recall@10") -> float:
    return float(measured.metrics[metric].value)


def test_clean_figures_are_those_of_evaluate(drawn: ItemDataset, spread: DualTower) -> None:
    result = evaluate_robustness(spread, drawn, replace(QUICK, corruptions=("noise",), epsilons=()))
    report = evaluate(spread, drawn, ks=(1, 10), bootstrap=20).report
    assert list(result.measured) == ["image_to_text", "image_to_image"]
    for name, conditions in result.measured.items():
        for metric, figure in conditions[CLEAN].metrics.items():
            assert figure.value == pytest.approx(report.metrics[name][metric].value, abs=1e-3)
            assert result.chance[name][metric] == pytest.approx(report.chance[name][metric])
        noisy = conditions[Condition("noise", 5)]
        change = noisy.change["recall@10"]
        assert change.value == pytest.approx(value(noisy) - value(conditions[CLEAN]))
        assert change.low is not None and change.high is not None and change.low <= change.value <= change.high
        both = [value(conditions[Condition("noise", strength)]) for strength in (1, 5)]
        assert value(conditions[MEAN]) == pytest.approx(np.mean(both))


def own_products(items: ItemDataset) -> ItemDataset:
    """The first image of each product alone."""
    _, first = np.unique(items.codes, return_index=True)
    return items.select(first)


def image_only(**more: Any) -> DualTower:
    config = ModelConfig(text=None, image=factories.IMAGE["gernet"], image_settings=SETTINGS, embed_dim=12, **more)
    torch.manual_seed(0)
    return DualTower.create(config, None).eval()


def test_where_nothing_else_is_there_an_image_has_to_find_itself(drawn: ItemDataset) -> None:
    items = own_products(drawn)
    result = evaluate_robustness(image_only(), items, replace(QUICK, corruptions=("occlusion",)))
    (conditions,) = result.measured.values()
    assert list(result.measured) == ["own_image"]
    assert value(conditions[CLEAN], "recall@1") == pytest.approx(1, abs=0.02)
    assert value(conditions[Condition("occlusion", 5)], "recall@1") < 0.9
    assert value(conditions[Condition(PGD, 4)], "recall@1") < value(conditions[CLEAN], "recall@1")
    assert "has to find itself" in result.table() and "its own clean image" in result.table()


def test_image_only_models_search_images_and_draw_among_those_with_another(drawn: ItemDataset) -> None:
    _, lonely = np.unique(drawn.codes, return_index=True)
    items = drawn.select(np.union1d(lonely, np.flatnonzero(drawn.codes == drawn.codes[0])))
    result = evaluate_robustness(image_only(), items, replace(QUICK, corruptions=("blur",), epsilons=(), rows=2))
    assert list(result.measured) == ["image_to_image"] and result.protocol["rows_drawn"] == 2
    sizes = result.protocol["searches"]["image_to_image"]
    assert sizes == {"queries": 2, "gallery": len(items), "own_image_excluded": True}


def test_a_drawn_row_asks_with_all_of_its_images(spread: DualTower) -> None:
    rows = [
        Item(
            str(i),
            f"p{i}",
            (factories.TITLES[i],),
            factories.png(factories.photo(i)),
            more_images=(factories.png(factories.photo(50 + i)),) if i < 6 else (),
        )
        for i in range(12)
    ]
    config = replace(QUICK, corruptions=("noise",), epsilons=(2,), steps=1)
    result = evaluate_robustness(spread, ItemDataset.from_rows(rows), config)
    sizes = result.protocol["searches"]
    assert sizes["image_to_text"]["queries"] == 18 and sizes["image_to_image"]["queries"] == 12
    lonely = evaluate_robustness(spread, ItemDataset.from_rows(rows[6:]), config)
    assert list(lonely.measured) == ["image_to_text"]
    assert lonely.protocol["left_out"] == ["image → image: no product of the drawn rows has another image"]


def test_an_attack_that_knows_what_is_searched_loses_what_noise_keeps(drawn: ItemDataset, spread: DualTower) -> None:
    items = own_products(drawn)
    one_sided = replace(QUICK, corruptions=(), epsilons=(1, 4), steps=10)
    result = evaluate_robustness(image_only(), items, one_sided)
    conditions = result.measured["own_image"]
    assert value(conditions[Condition(PGD, 4)], "recall@1") <= value(conditions[Condition(PGD, 1)], "recall@1")
    assert MEAN not in conditions


def test_the_draw_and_the_noise_follow_the_seed_and_not_the_batches(
    drawn: ItemDataset, spread: DualTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, corruptions=("noise", "occlusion"), epsilons=(2,), steps=2, rows=20)
    first = evaluate_robustness(spread, drawn, config).to_dict()
    with monkeypatch.context() as patched:
        patched.setattr(embedding, "BLOCK", 7)
        again = evaluate_robustness(spread, drawn, config, batch_size=3).to_dict()
    for name in ("image_to_text", "image_to_image"):
        for one, two in zip(first[name], again[name], strict=True):
            assert one["recall@10"]["value"] == pytest.approx(two["recall@10"]["value"], abs=0.02)
    assert first["protocol"]["rows_drawn"] == 20
    other = evaluate_robustness(spread, drawn, replace(config, seed=1)).to_dict()
    assert other["image_to_text"][0] != first["image_to_text"][0]


def test_the_model_comes_back_as_it_was(drawn: ItemDataset) -> None:
    model = factories.spread_model(head_dropout=0.2).train()
    model.compute_in(TowerPrecision("bf16", "bf16"))
    before = states(model)
    result = evaluate_robustness(model, drawn.select(range(24)), replace(QUICK, corruptions=("jpeg",)))
    assert result.protocol["computed"]["image"] == "fp32"
    assert all(module.training for module in model.modules()) and model.precision == TowerPrecision("bf16", "bf16")
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_other_similarities_are_attacked_too(similarity: Any, drawn: ItemDataset) -> None:
    model = factories.spread_model(similarity=similarity)
    result = evaluate_robustness(model, drawn.select(range(40)), replace(QUICK, corruptions=(), epsilons=(8,), rows=20))
    attacked = result.measured["image_to_text"][Condition(PGD, 8)]
    assert attacked.change["recall@10"].value < 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"corruptions": ("noise", "blurr")}, "Did you mean 'blur'"),
        ({"strengths": (1, 6)}, "strength 6 .* give 1 to 5"),
        ({"strengths": (0,)}, "strength 0"),
        ({"epsilons": (0,)}, "epsilon 0 .* 255ths"),
        ({"epsilons": (300,)}, "epsilon 300"),
        ({"corruptions": (), "epsilons": ()}, "nothing to measure"),
        ({"strengths": (), "epsilons": ()}, "nothing to measure"),
        ({"corruptions": ("blur", "blur")}, "corruptions blur blur name something twice"),
        ({"steps": 0}, "0 steps"),
        ({"step_size": 0.0}, "steps of 0.0"),
        ({"rows": 0}, "rows is 0"),
        ({"ks": ()}, "cut-offs"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, UnknownName), match=said):
        RobustnessConfig(**wrong)


def test_rows_without_images_are_refused(spread: DualTower) -> None:
    rows = [Item(str(i), str(i), (factories.TITLES[i],)) for i in range(4)]
    with pytest.raises(DataError, match=r"no row has an image to change; .*columns\.image"):
        evaluate_robustness(spread, ItemDataset.from_rows(rows), QUICK)


# --- the command ---


def test_the_options_have_the_defaults_of_the_library() -> None:
    defaults = {field.name: field.default for field in Command.__dataclass_fields__.values()}
    for name, default in RobustnessConfig().__dict__.items():
        assert defaults[name] == default


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "card.md"
    path.write_text(CARD)
    return path


@pytest.fixture(scope="module")
def folder(spread: DualTower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spread.save_pretrained(tmp_path_factory.mktemp("model") / "model")


SHORT = ("--strengths", 1, 5, "--epsilons", 4, "--steps", 2, "--rows", 30, "--bootstrap", 200)


def test_the_command_measures_and_reports(folder: Path, card: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("robustness", folder, "--data.card", card, *SHORT, "--json", tmp_path / "figures.json")
    assert command(*words, "--report", tmp_path / "report") == 0
    printed = capsys.readouterr().out
    assert "image → text, 30 queries" in printed and "PGD attack" in printed and "4/255" in printed
    assert "drawn with seed 0" in printed and "40x30 pixels" in printed and "random order" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads((tmp_path / "report" / "metrics.json").read_text())
    conditions = [(line["condition"], line["strength"]) for line in figures["image_to_text"]]
    corruptions = [(name, strength) for name in CORRUPTIONS for strength in (1, 5)]
    assert conditions == [("clean", 0), *corruptions, ("mean", 0), ("pgd", 4)]
    assert "change" not in figures["image_to_text"][0]
    for line in figures["image_to_image"][1:]:
        for metric in ("recall@1", "recall@10", "hit@1", "hit@10"):
            assert line["change"][metric]["low"] <= line["change"][metric]["value"] <= line["change"][metric]["high"]
    assert figures["protocol"]["attack"]["steps"] == 2 and figures["protocol"]["seed"] == 0
    assert figures["protocol"]["corruptions"]["jpeg"] == {
        "level": CORRUPTIONS["jpeg"].meaning,
        "1": 25,
        "5": 7,
    }
    report = (tmp_path / "report" / "report.md").read_text()
    shown = {path.name for path in (tmp_path / "report" / "report").iterdir()}
    assert shown == {"recall.png", *(f"{name}_{n}.png" for name in (*CORRUPTIONS, PGD) for n in (1, 2, 3))}
    assert all(f"report/{name})" in report for name in shown)
    assert re.search(r"\| jpeg +\| quality .* \| +25 \| +7 \|", report)
    assert "| epsilons" in report and "| seed" in report
    strip = Image.open(tmp_path / "report" / "report" / "noise_1.png")
    assert strip.width > strip.height * 2 and len(strip.getcolors(1 << 24)) > 100


def test_the_command_takes_an_image_only_model(card: Path, tmp_path: Path, capsys: Any) -> None:
    image_only().save_pretrained(tmp_path / "model")
    words = ("robustness", tmp_path / "model", "--data.card", card, *SHORT)
    assert command(*words, "--corruptions", "blur", "--rows", "None") == 0
    printed = capsys.readouterr().out
    assert "image → image" in printed and "image → text" not in printed and "The images of all " in printed
    assert command(*words, "--corruptions", "--ks", 5) == 0
    printed = capsys.readouterr().out
    assert "recall@5" in printed and "mean of the corruptions" not in printed
    assert command(*words, "--epsilons") == 0
    assert "PGD attack" not in capsys.readouterr().out


def test_what_the_command_refuses(folder: Path, card: Path, tmp_path: Path, capsys: Any) -> None:
    def said(*words: object) -> str:
        assert command("robustness", *words) == 1
        return str(capsys.readouterr().out)

    assert "Did you mean 'occlusion'" in said(folder, "--data.card", card, "--corruptions", "oclusion")
    assert "give 1 to 5" in said(folder, "--data.card", card, "--strengths", 7)
    text_only = DualTower.create(
        ModelConfig(text=factories.TEXT["bow"], image=None, embed_dim=12), factories.tokenizer()
    ).save_pretrained(tmp_path / "texts")
    assert "this model has no image tower" in said(text_only, "--data.card", card)
    (tmp_path / "texts.md").write_text(CARD.replace(", image: image", ""))
    assert "no row has an image to change" in said(folder, "--data.card", tmp_path / "texts.md", *SHORT)
    assert "Did you mean 'test'" in said(folder, "--data.card", card, "--split", "tset")
