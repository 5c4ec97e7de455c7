"""Damage is found: by each scorer, in the right place, at the stated rate of false alarms, and from the command."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import damaged
import factories
import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import command

from dualtower import DualTower
from dualtower.curation.damage import (
    DamageScorer,
    KNNScorer,
    PatchScorer,
    PCAReconstructor,
    Photos,
    ReconstructionScorer,
    choose_threshold,
    find_damage,
    min_clean_rows,
    open_photos,
    patch,
)
from dualtower.curation.damage.detection import create_scorer
from dualtower.curation.damage.patch import chosen_stages, greedy_coreset
from dualtower.data.items import ItemDataset
from dualtower.data.synthetic.damage import DAMAGES, draw_damage
from dualtower.errors import CardError, ConfigError, DataError, SourceError, UnknownName
from dualtower.evaluation.auroc import auroc
from dualtower.models.towers.image import TimmTower
from dualtower.types import Item

CLEAN, FRESH, BROKEN = range(0, 90), range(200, 230), range(300, 330)
TYPES = tuple(DAMAGES)


@pytest.fixture(scope="module")
def model() -> DualTower:
    return factories.spread_model()


def test_the_drawn_products_have_the_size_that_the_model_sees() -> None:
    assert (factories.SETTINGS.width, factories.SETTINGS.height) == damaged.SIZE


SCORERS = {  # what makes it; AUROC and share of heat maps that are hottest at the damage, at least
    "knn": (lambda: KNNScorer(factories.spread_model(image="vit"), neighbors=3), 0.75, 0.45),
    "patch of near images": (lambda: PatchScorer(factories.spread_model(), neighbors=8), 0.93, 0.7),
    "patch of one memory": (lambda: PatchScorer(factories.spread_model(), neighbors=0, memory=1000), 0.92, 0.65),
    "reconstruction": (lambda: ReconstructionScorer(components=16), 0.97, 0.93),
}


@pytest.mark.parametrize("name", SCORERS)
def test_each_scorer_finds_the_damage_and_its_place(name: str) -> None:
    create, least, least_inside = SCORERS[name]
    scorer = create()
    scorer.fit(damaged.whole(CLEAN))
    fresh, (broken, masks) = damaged.whole(FRESH), damaged.damaged(BROKEN, TYPES)
    scores = np.concatenate([scorer.score(fresh), scorer.score(broken)])
    assert scores.dtype == np.float32 and scores.shape == (60,)
    assert auroc(scores, np.arange(60) >= 30) >= least
    broken, masks = broken[:16], masks[:16]
    heat = scorer.heat_maps(broken)
    assert heat.shape == masks.shape and np.isfinite(heat).all()
    # A patch is not a pixel: two pixels beside the damage will do.
    near = torch.nn.functional.max_pool2d(torch.from_numpy(masks).float(), 5, 1, 2).numpy() > 0
    hottest = heat.reshape(16, -1).argmax(1)
    assert near.reshape(16, -1)[np.arange(16), hottest].mean() >= least_inside


def test_scores_do_not_depend_on_what_stands_beside_an_image(model: DualTower) -> None:
    broken, _ = damaged.damaged(BROKEN, TYPES)
    for method in ("knn", "patch", "reconstruction"):
        scorer = create_scorer(method, model, neighbors=5)
        scorer.fit(damaged.whole(CLEAN))
        together = scorer.score(broken)
        alone = np.concatenate([scorer.score(broken[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(together[:3], alone, rtol=2e-2, atol=1e-5)  # patches are kept in half precision


@pytest.mark.parametrize("image", ["gernet", "resnet", "vit", "swin"])
def test_every_backbone_shows_patches(image: str) -> None:
    scorer = PatchScorer(factories.spread_model(image=image), neighbors=3)
    scorer.fit(damaged.whole(range(12)))
    assert scorer.heat_maps(damaged.whole(range(20, 22))).shape == (2, 40, 30)
    assert np.isfinite(scorer.score(damaged.whole(range(20, 22)))).all()


def test_stages_are_those_of_the_backbone() -> None:
    tower, pixels = factories.model().image_tower, damaged.whole(range(3))
    assert isinstance(tower, TimmTower) and tower.stage_count == 5
    with torch.no_grad():
        first, last = tower.stages(pixels, [0, 4])
        tokens = tower(pixels).tokens
    assert first.shape[2:] == (20, 15)
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens)


def test_wide_patches_are_projected(model: DualTower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances stay what they were, within what eight of sixteen numbers can keep."""
    monkeypatch.setattr(patch, "MAX_WIDTH", 8)
    scorer = PatchScorer(model, neighbors=3)
    scorer.fit(damaged.whole(range(30)))
    assert scorer.clean.shape[-1] == 8
    broken, _ = damaged.damaged(BROKEN, ("missing_part",))
    assert auroc(np.concatenate([scorer.score(damaged.whole(FRESH)), scorer.score(broken)]), np.arange(60) >= 30) > 0.8


def test_stages_are_chosen_as_in_patchcore(model: DualTower) -> None:
    assert chosen_stages(factories.model(image="vit")) == (1,)  # of two blocks, half and three quarters are one
    config = factories.config("bow", "resnet", image_settings=factories.ImageSettings(224, 224))
    assert chosen_stages(DualTower.create(config, factories.tokenizer())) == (2, 3)
    assert PatchScorer(model, stages=[1, 2]).stages == (1, 2)
    for wrong in ([], [2, 1], [9], [1, 1]):
        with pytest.raises(ConfigError, match="ascending numbers from 0 to 4"):
            PatchScorer(model, stages=wrong)


def test_a_coreset_leaves_nothing_far_from_it() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 50 * torch.randn(12, 200, generator=generator)
    crowd = torch.cat([centers[:1] + torch.randn(500, 200, generator=generator), centers])
    chosen = greedy_coreset(crowd, 12, seed=3)
    assert len(set(chosen.tolist())) == 12
    assert torch.cdist(centers[1:], crowd[chosen]).amin(1).max() == 0  # each lonely one; at random, hardly any
    assert sorted(greedy_coreset(crowd[:5], 9).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(greedy_coreset(torch.ones(4, 3), 4).tolist()) == [0, 1, 2, 3]


def test_principal_components_draw_what_they_know() -> None:
    clean = damaged.whole(CLEAN)
    known = PCAReconstructor(clean, components=90).reconstruct(clean)
    assert known.shape == clean.shape and known.min() >= 0 and known.max() <= 255
    assert (known - clean).abs().mean() < 0.5
    assert (PCAReconstructor(clean, components=2).reconstruct(clean) - clean).abs().mean() > 2
    state = torch.random.get_rng_state()
    large = torch.nn.functional.interpolate(clean[:20].float(), (160, 120)).to(torch.uint8)
    reconstructor = PCAReconstructor(large)
    assert reconstructor.size == (80, 60) and reconstructor.reconstruct(large).shape == large.shape
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_autoencoder_of_ones_own() -> None:
    class Blank:
        def reconstruct(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full(pixels.shape, 246.0)

    scorer = ReconstructionScorer(Blank())
    scorer.fit(damaged.whole(range(2)))
    scores = scorer.score(torch.full((1, 3, 40, 30), 240, dtype=torch.uint8))
    assert scores == pytest.approx(6, abs=1e-4)


# Threshold -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_fresh_clean_rows_raise_no_more_false_alarms_than_stated(rate: float) -> None:
    """On average over draws at most the rate, and not far below it; each draw's own within its stated range."""
    rng, rates, inside = np.random.default_rng(1), [], 0
    for _ in range(200):
        chosen = choose_threshold(rng.gamma(2.0, size=240), rate)
        rates.append(float((rng.gamma(2.0, size=4000) > chosen.value).mean()))
        inside += chosen.low - 0.004 <= rates[-1] <= chosen.high + 0.004
    assert 0.7 * rate <= np.mean(rates) <= rate + 3 * np.std(rates) / 200**0.5
    assert inside >= 185


def test_as_few_rows_as_a_rate_bears() -> None:
    assert [min_clean_rows(rate) for rate in (0.01, 0.05, 0.001, 0.3, 0.5, 0.9)] == [99, 19, 999, 3, 1, 1]
    scores = np.arange(99.0)
    assert choose_threshold(scores, 0.01).value == 98  # the greatest
    with pytest.raises(DataError, match=r"98 held-out clean rows are too few .* needs 99; .*--false-alarms 0.011"):
        choose_threshold(scores[:98], 0.01)
    assert choose_threshold(scores[:98], 0.011).value == 97
    for wrong in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            choose_threshold(scores, wrong)
    with pytest.raises(DataError, match="NaN"):
        choose_threshold(np.full(99, np.nan), 0.01)


def test_equal_scores_raise_no_alarm() -> None:
    chosen = choose_threshold(np.ones(99), 0.01)
    assert not (np.ones(3) > chosen.value).any()


# The whole way ---------------------------------------------------------------------------------------------


def photos_of(images: list[Image.Image], name: str = "photos", products: np.ndarray | None = None) -> Photos:
    ids = [f"{name}-{i}" for i in range(len(images))]
    return Photos(name, ids, np.arange(len(images)) if products is None else products, images)


@pytest.fixture(scope="module")
def clean() -> Photos:
    return photos_of([damaged.shirt(seed) for seed in range(150)], "clean")


@pytest.fixture(scope="module")
def new() -> Photos:
    images = [damaged.shirt(seed) for seed in FRESH]
    return photos_of([*images, *(draw_damage(damaged.shirt(s), TYPES[s % 4], seed=s).image for s in BROKEN)], "new")


@pytest.mark.parametrize("method", ["knn", "patch", "reconstruction"])
def test_against_clean_ones(method: str, model: DualTower, clean: Photos, new: Photos) -> None:
    found = find_damage(new, clean, model, method=method, false_alarms=0.05, heat_maps=4)
    assert (np.diff(found.scores) <= 0).all() and found.threshold is not None
    assert found.threshold.clean_rows == 38 and found.memory_rows == 112
    broken = np.array([int(name.split("-")[1]) >= 30 for name in found.photos.ids])
    assert (found.damaged & ~broken).sum() <= 6
    if method != "knn":
        assert (found.damaged & broken).sum() >= 8 and auroc(found.scores, broken) > 0.85
    assert found.heat.shape == (4, 40, 30) and found.usual_heat[0] < found.usual_heat[1]
    again = find_damage(new, clean, model, method=method, false_alarms=0.05, heat_maps=0)
    assert again.photos.ids == found.photos.ids and len(again.heat) == 0


@pytest.mark.parametrize("method", ["patch", "reconstruction"])
def test_among_themselves(method: str, model: DualTower) -> None:
    """Five damaged images among eighty."""
    images = [damaged.shirt(seed) for seed in range(80)]
    for seed in range(5):
        images[7 * seed] = draw_damage(images[7 * seed], "missing_part", seed=seed).image
    found = find_damage(photos_of(images), None, model, method=method, heat_maps=6)
    assert found.threshold is None and not found.damaged.any() and found.memory_rows == 40
    broken = np.isin([int(name.split("-")[1]) for name in found.photos.ids], [0, 7, 14, 21, 28])
    assert auroc(found.scores, broken) > 0.85
    assert found.heat.shape == (6, 40, 30)


def test_rows_of_one_product_stand_on_one_side(model: DualTower) -> None:
    """Each image stands there twice: were its twin in the memory, a held-out image would have no distance at all."""
    images = [damaged.shirt(seed // 2) for seed in range(160)]
    found = find_damage(
        photos_of(images[:3]), photos_of(images, products=np.arange(160) // 2), model, false_alarms=0.05
    )
    assert found.threshold is not None and found.threshold.value > 0.5


def test_broken_images_are_left_out_and_named(model: DualTower, clean: Photos) -> None:
    mixed = photos_of([damaged.shirt(1), b"nothing", damaged.shirt(2)], "mixed")  # type: ignore[list-item]
    found = find_damage(mixed, clean, model, false_alarms=0.05)
    assert sorted(found.photos.ids) == ["mixed-0", "mixed-2"] and "mixed-1" in str(found.skipped[0])
    one = find_damage(photos_of([damaged.shirt(1)]), clean, model, false_alarms=0.05)
    assert len(one.scores) == 1
    with pytest.raises(DataError, match="none of the 1 images in broken"):
        find_damage(photos_of([b"x"], "broken"), clean, model, false_alarms=0.05)  # type: ignore[list-item]


def test_clean_images_that_say_nothing(model: DualTower, clean: Photos, new: Photos) -> None:
    with pytest.raises(DataError, match=r"99 choose the threshold and 10 say what is clean, 109 in all"):
        find_damage(new, clean.select(np.arange(108)), model)
    assert find_damage(new.select(np.arange(2)), clean.select(np.arange(109)), model).threshold is not None
    with pytest.raises(DataError, match="1 clean images are too few"):
        find_damage(new, clean.select(np.arange(1)), model)
    with pytest.raises(DataError, match="of 50 at most"):
        find_damage(new, clean, model, max_clean=50)
    with pytest.raises(DataError, match="show 1 products"):
        find_damage(new, photos_of(list(clean.images), products=np.zeros(150, int)), model)
    with pytest.raises(DataError, match="clean images are equal"):
        find_damage(new, photos_of([damaged.shirt(1)] * 120), model)
    with pytest.raises(DataError, match="clean images are equal"):
        find_damage(photos_of([damaged.shirt(1)] * 40), None, model)
    with pytest.raises(DataError, match="too few to compare with each other"):
        find_damage(new.select(np.arange(19)), None, model)
    with pytest.raises(DataError, match="0 clean images are too few"):
        scorer: DamageScorer = ReconstructionScorer()
        scorer.fit(damaged.whole(CLEAN)[:0])


def test_models_that_cannot_see(clean: Photos, new: Photos) -> None:
    reader = DualTower.create(replace(factories.config("bow"), image=None), factories.tokenizer())
    for method in ("knn", "patch", "reconstruction"):
        with pytest.raises(ConfigError, match="image"):
            find_damage(new, clean, reader, method=method)
    with pytest.raises(UnknownName, match="Did you mean 'patch'"):
        find_damage(new, clean, factories.model(), method="patches")  # type: ignore[arg-type]


# Where images come from, and the command -------------------------------------------------------------------


def test_photos_of_a_folder_and_of_items(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    damaged.shirt(1).save(tmp_path / "deep" / "b.PNG")
    damaged.shirt(2).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("no photo")
    found = open_photos(str(tmp_path))
    assert list(found.ids) == ["a.jpg", "deep/b.PNG"] and len(set(found.products.tolist())) == 2
    rows = [Item("1", "p", ("t",), factories.png(damaged.shirt(1))), Item("2", "p", ("t",), None)]
    assert list(Photos.of_items(ItemDataset.from_rows(rows)).ids) == ["1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no image below"):
        open_photos(str(tmp_path / "empty"))
    with pytest.raises(CardError, match="fashion_products"):
        open_photos("fashion_product")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    factories.spread_model().save_pretrained(folder / "model")
    broken = draw_damage(damaged.shirt(201), "missing_part", seed=1).image
    for name, images in (
        ("clean", [damaged.shirt(seed) for seed in range(60)]),
        ("new", [damaged.shirt(200), broken, damaged.shirt(202)]),
    ):
        (folder / name).mkdir()
        for number, image in enumerate(images):
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("method", ["knn", "patch", "reconstruction"])
def test_the_command_on_folders(method: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--clean", folders / "clean", "--model", folders / "model", "--method", method]
    words += ["--out", tmp_path / "found", "--false-alarms", "0.05"]
    assert command("outliers", folders / "new", *words) == 0
    told = capsys.readouterr().out
    assert "of 3 images" in told and "chosen on 19 clean rows" in told and "rate of 5 %" in told
    with (tmp_path / "found" / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 and rows[0]["damaged"] in "01"
    if method != "knn":
        assert rows[0]["id"] == "1.png" and rows[0]["damaged"] == "1"
    report = (tmp_path / "found" / "report.md").read_text()
    assert ("images/1.png" in report and "| damaged" in report) or method == "knn"
    with Image.open(tmp_path / "found" / "images" / "1.png") as pair:
        assert pair.size == (2 * 30 * 4 + 4, 160)
        assert np.asarray(pair)[:, : 30 * 4].std() > 5 and (np.asarray(pair.convert("RGB"))[:, 124:, 0] > 150).any()


def test_the_command_on_photos_alone(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for method in ("knn", "patch"):
        words = ("outliers", folders / "clean", "--model", folders / "model", "--method", method)
        assert command(*words, "--out", tmp_path / method, "--number", "3") == 0
        assert "of the other half" in capsys.readouterr().out
        assert sorted(path.name for path in (tmp_path / method / "images").iterdir()) == ["1.png", "2.png", "3.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("NEW", "--clean", "CLEAN"), "name the model that looks at the images: --model FOLDER"),
        (("NEW",), "name the model that looks at the images: --model FOLDER"),
        (("nowhere",), "no catalog in nowhere"),
        (("NEW", "--clean", "nowhere", "--model", "MODEL"), "nowhere"),
        (("NEW", "--clean", "CLEAN", "--model", "MODEL"), "99 choose the threshold and 10 say what is clean"),
        (("NEW", "--clean", "CLEAN", "--model", "MODEL", "--false-alarms", "2"), "between 0 and 1"),
        (("NEW", "--clean", "CLEAN", "--model", "MODEL", "--neighbors", "-1"), "--neighbors must be 0 or more"),
        (("NEW", "--clean", "CLEAN", "--model", "nowhere"), "nowhere"),
    ],
)
def test_wrong_words(words: tuple, message: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    named = {"NEW": folders / "new", "CLEAN": folders / "clean", "MODEL": folders / "model"}
    assert command("outliers", *(named.get(word, word) for word in words), "--out", tmp_path / "found") == 1
    assert message in capsys.readouterr().out
    assert not (tmp_path / "found").exists()
