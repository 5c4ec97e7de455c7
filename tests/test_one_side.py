"""Catalogs and models of images alone and of texts alone: trained, measured, indexed, searched, served, explained."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import catalogs
import factories
import httpx
import numpy as np
import pytest
import torch
from processes import torchrun
from test_cli import command
from test_search_page import CHROMIUM, until
from test_serving import Server, start

from dualtower import (
    DualTower,
    FusionConfig,
    ImageSettings,
    Item,
    LossConfig,
    ModelConfig,
    RerankerConfig,
    RunConfig,
)
from dualtower.config import from_dict, to_dict
from dualtower.curation.check import check_card
from dualtower.data.cards import Columns, DataCard, load_card
from dualtower.data.items import ItemDataset
from dualtower.data.loading import load_items
from dualtower.data.synthetic.catalog import synthesize_catalog
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.errors import CardError, ConfigError, DataError, ModelFolderError
from dualtower.evaluation import Qrels, evaluate, evaluate_product_retrieval
from dualtower.inference.explain import draw_explanation, explain
from dualtower.launcher import parse_overrides
from dualtower.losses import build_loss
from dualtower.objectives.two_views import TwoViews
from dualtower.search.store import open_store
from dualtower.serving.schemas import ItemIn
from dualtower.serving.writes import check_whole
from dualtower.training.batches import augmented
from dualtower.training.config import TrainConfig
from dualtower.training.run import run

own_cache = catalogs.own_cache
REPOSITORY = Path(__file__).parent.parent
OTHER = {"image": "text", "text": "image"}
CARD = """---
name: drawn_{side}s
title: The synthetic catalog, {side}s alone
source: {{synthetic: en, options: {{products: 200}}}}
columns: {{id: id, product_id: product_id, {side}: {side}, attributes: [object, color]}}
splits: {{named: {{train: train, validation: validation, test: test}}}}
---
"""


def recipe(*options: object) -> RunConfig:
    """The smoke run of the main recipe with a tiny image tower, and with some options typed."""
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    from train_clip_style import config

    whole = config().smoke()
    small = replace(whole.model, image=factories.IMAGE["gernet"], image_settings=ImageSettings(height=32, width=32))
    quiet = ["--data.workers", "0", "--train.cpu-threads", "1", "--evaluation.bootstrap", "10", "--train.trackers"]
    return parse_overrides(replace(whole, model=small), [*quiet, *map(str, options)])


def write_card(folder: Path, side: str) -> Path:
    (folder / "card.md").write_text(CARD.format(side=side))
    return folder / "card.md"


@pytest.fixture(scope="module", params=["image", "text"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run of the main recipe on a card with one side."""
    side, folder = request.param, tmp_path_factory.mktemp(request.param)
    options = ["--data.card", write_card(folder, side), "--out", folder / "run", f"--model.{OTHER[side]}", "None"]
    assert run(recipe(*options, "--train.token-dropout", 0.1))
    return side, folder


@pytest.fixture(scope="module")
def indexed(trained: tuple[str, Path]) -> Path:
    _, folder = trained
    words = ("index", folder / "run" / "model", "--data.card", folder / "card.md", "--split", "test")
    assert command(*words, "--out", folder / "shop") == 0
    return folder / "shop"


def test_a_run_trains_and_measures_what_there_is(trained: tuple[str, Path]) -> None:
    side, folder = trained
    figures, direction = json.loads((folder / "run" / "metrics.json").read_text()), f"{side}_to_{side}"
    assert [name for name in figures if "_to_" in name] == [direction]
    sizes = figures["protocol"]["directions"][direction]
    assert sizes["own_row_excluded"] and figures[direction]["recall@10"]["value"] > sizes["chance"]["recall@10"]
    steps = list(map(json.loads, (folder / "run" / "history.jsonl").open()))
    assert any(f"{direction}/recall@10" in line.get("validation", {}) for line in steps)
    report = (folder / "run" / "report.md").read_text()
    assert f"{side} → {side}: examples" in report
    parts = {path.name for path in (folder / "run" / "model").iterdir()}
    assert ("tokenizer" in parts) == (side == "text")
    card = (folder / "run" / "model" / "README.md").read_text()
    assert f"{side} tower that embeds product {side}s" in card and f"encode_{OTHER[side]}" not in card
    assert re.search(rf"\| {OTHER[side]} tower +\| none", card)


def test_the_model_says_what_it_has(trained: tuple[str, Path]) -> None:
    side, folder = trained
    model = DualTower.from_pretrained(folder / "run" / "model")
    absent = model.encode_text if side == "image" else model.encode_image
    with pytest.raises(
        ConfigError, match=rf"encode_{OTHER[side]}: this model has no .* tower; it embeds {side}s alone"
    ):
        absent(["anything"])
    assert model.computes.keys() == {"device", side}
    assert model.fingerprint == DualTower.from_pretrained(folder / "run" / "model").fingerprint
    again = model.save_pretrained(folder / "again")
    assert DualTower.from_pretrained(again).fingerprint == model.fingerprint


def test_it_trains_on_from_such_a_model(trained: tuple[str, Path], tmp_path: Path) -> None:
    side, folder = trained
    options = ["--base", folder / "run" / "model", "--data.card", folder / "card.md", "--out", tmp_path / "on"]
    assert run(recipe(*options, "--train.steps", 2))
    on = DualTower.from_pretrained(tmp_path / "on" / "model")
    assert on.config.modalities == (side,)


def test_it_is_measured_by_products(trained: tuple[str, Path], tmp_path: Path, capsys: Any) -> None:
    side, folder = trained
    words = ("evaluate", folder / "run" / "model", "--data.card", folder / "card.md", "--bootstrap", 10)
    assert command(*words, "--report", tmp_path / "report", "--run", tmp_path / "run.trec") == 0
    assert f"{side} → {side}" in capsys.readouterr().out
    assert len((tmp_path / "run.trec").read_text().splitlines()) > 100
    assert command(*words, "--task", "product-to-product", "--relevance", "object") == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert {"image": "image", "text": "title"}[side] in header and "average" not in header


def test_it_is_searched_by_what_it_has(
    trained: tuple[str, Path], indexed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    side, _ = trained
    product = synthesize_catalog(products=200, split="test")[0]
    (tmp_path / "photo.png").write_bytes(product.image)
    asked = {"image": ("--image", tmp_path / "photo.png"), "text": ("--text", product.texts[0])}
    capsys.readouterr()
    assert command("search", indexed, *asked[side], "--json") == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits[0]["score"] == pytest.approx(1, abs=2e-3) and len(hits) == 10
    assert command("search", indexed, "--similar", product.id, "--json") == 0
    assert product.product_id not in {hit["product_id"] for hit in json.loads(capsys.readouterr().out)["hits"]}
    assert command("search", indexed, *asked[OTHER[side]]) == 1
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1 and f"cannot search by {OTHER[side]}: this model has no {OTHER[side]} tower" in said[0]
    assert command("search", indexed, *asked[side], "--target", OTHER[side]) == 1
    assert f"no '{OTHER[side]}' vectors" in capsys.readouterr().out
    for again in (("verify", indexed), ("compact", indexed)):
        assert command(*again) == 0


def test_it_is_explained(trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    side, folder = trained
    rows = synthesize_catalog(products=200, split="test")
    for name, row in (("one", rows[0]), ("two", rows[5])):
        (tmp_path / f"{name}.png").write_bytes(row.image)
    given = {"image": (tmp_path / "one.png", tmp_path / "two.png"), "text": (rows[0].texts[0], rows[5].texts[0])}
    words = ("explain", folder / "run" / "model", "--out", tmp_path / "why.png")
    one, two = given[side]
    assert command(*words, f"--{side}", one, "--target", two) == 0
    printed = capsys.readouterr().out
    assert "similarity" in printed and (tmp_path / "why.png").stat().st_size > 100
    assert all(word in printed for word in (rows[0].texts[0].lower().split() if side == "text" else []))
    for wrong in (("--text", "red", "--image", tmp_path / "one.png"), (f"--{side}", one)):
        assert command(*words, *wrong) == 1
        assert f"a tower for {side}s alone; give one as --{side}" in capsys.readouterr().out


@pytest.fixture
def server(indexed: Path) -> Iterator[Server]:
    running = start(indexed)
    yield running
    running.process.kill()


def test_it_is_served(trained: tuple[str, Path], server: Server) -> None:
    side, _ = trained
    row = synthesize_catalog(products=200, split="test")[0]
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/about").json()["vector_names"] == [side]
        answers = {
            "text": client.post("/search", json={"text": row.texts[0]}),
            "image": client.post("/search", files={"image": row.image}),
        }
        assert answers[side].json()["hits"][0]["score"] == pytest.approx(1, abs=2e-3)
        refused = answers[OTHER[side]]
        assert refused.status_code == 422 and f"no {OTHER[side]} tower" in refused.json()["detail"]
        assert client.get(f"/items/{row.id}/similar").json()["hits"]
        why = client.get(f"/items/{row.id}/explain", params={"text": "mug"})
        assert why.status_code == 422 and "cannot be compared" in why.json()["detail"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")
def test_the_page_offers_what_the_model_takes(trained: tuple[str, Path], server: Server, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    side, _ = trained
    row = synthesize_catalog(products=200, split="test")[0]
    (tmp_path / "photo.png").write_bytes(row.image)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        until(page, "document.querySelector('#status').textContent.includes('rows')")
        assert page.text_content("#status").endswith(
            {"image": "rows. Drop an image.", "text": "rows. Type words."}[side]
        )
        assert (page.is_visible("#text"), page.is_visible("#drop")) == (side == "text", side == "image")
        if side == "text":
            page.fill("#text", row.texts[0])
            page.press("#text", "Enter")
        else:
            page.set_input_files("#image", tmp_path / "photo.png")
        page.wait_for_selector(".hit")
        assert page.is_visible(".similar") and not page.is_visible(".reason")
        browser.close()


def test_an_item_that_could_not_be_found_is_not_written(trained: tuple[str, Path], indexed: Path) -> None:
    side, _ = trained
    given = {"image": ItemIn(id="new", image=base64.b64encode(b"image")), "text": ItemIn(id="new", title="mug")}
    check_whole(open_store(indexed), [given[side]])
    missing = {"image": "image", "text": "title"}[side]
    with pytest.raises(DataError, match=rf"{missing} is missing, and this catalog is searched by nothing else"):
        check_whole(open_store(indexed), [given[OTHER[side]]])


def test_two_ranks_train_it(tmp_path: Path) -> None:
    for side in OTHER:
        options = ["--data.card", str(write_card(tmp_path, side)), "--out", str(tmp_path / side), "--train.steps", "2"]
        options += ["--train.batch-size", "8", "--evaluation.bootstrap", "10", "--model.embed-dim", "16"]
        if side == "image":
            options += ["--model.image.options", json.dumps(factories.IMAGE["gernet"].options)]
        told = torchrun(
            REPOSITORY / "recipes" / "train_clip_style.py",
            *["--smoke", f"--model.{OTHER[side]}", "None", *options],
            processes=2,
        )
        assert "2 process(es)" in told.stdout + told.stderr
        assert DualTower.from_pretrained(tmp_path / side / "model").config.modalities == (side,)


def one_sided(side: str) -> ModelConfig:
    return replace(factories.config("bow", "resnet"), **{OTHER[side]: None})


def one_tower(side: str) -> DualTower:
    torch.manual_seed(0)
    return DualTower.create(one_sided(side), factories.tokenizer() if side == "text" else None).eval()


def rows(side: str, number: int = 24) -> ItemDataset:
    """Two rows of each product; as texts with two captions each."""
    return ItemDataset.from_rows(
        [
            Item(
                f"r{i}",
                f"p{i // 2}",
                (factories.TITLES[i // 2], factories.TITLES[12 + i % 12]) if side == "text" else (),
                factories.png(factories.photo(i)) if side == "image" else None,
            )
            for i in range(number)
        ]
    )


def test_a_tower_alone_has_the_seeded_weights_and_the_config_of_two_stays() -> None:
    whole = to_dict(ModelConfig())
    assert list(whole)[:3] == ["text", "image", "image_settings"] and None not in (whole["text"], whole["image"])
    for side in OTHER:
        config = one_sided(side)
        plain = to_dict(config)
        assert to_dict(from_dict(ModelConfig, plain)) == plain and config.modalities == (side,)
        names = {name.split(".")[0] for name in one_tower(side).state_dict()}
        assert names == {f"{side}_tower", f"{side}_head", "logit_scale"}
    first = one_tower("text").text_tower.state_dict()
    both = factories.model("bow", "resnet").text_tower.state_dict()
    assert all(torch.equal(first[name], both[name]) for name in first)


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="both None"):
        ModelConfig(text=None, image=None)
    for head in ({"reranker": RerankerConfig()}, {"fusion": FusionConfig()}):
        with pytest.raises(ConfigError, match="looks at texts and images, and this model has a tower for images alone"):
            ModelConfig(text=None, **head)
    with pytest.raises(ConfigError, match="takes no tokenizer"):
        DualTower(one_sided("image"), factories.tokenizer())


def test_a_model_folder_without_its_tokenizer_is_still_incomplete(tmp_path: Path) -> None:
    import shutil

    one_tower("text").save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    with pytest.raises(ModelFolderError, match="missing: tokenizer"):
        DualTower.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("side", OTHER)
def test_two_views_attract_the_rows_of_one_product(side: str) -> None:
    objective = TwoViews(one_tower(side), build_loss(LossConfig()))
    items = rows(side, 8)
    visited = [items.visit(i, draw) for i, draw in enumerate([0, 1, 0, 1, 0, 1, 0, 1])]
    batch = replace(objective.model.collator(), captions=2)(visited)
    train = TrainConfig(steps=1, token_dropout=0.3, augmentation="product")
    draw = BatchRNG(0, size=8)
    batch = augmented(batch, train, objective.model.tokenizer, draw, size=(40, 30), views=objective.views)
    with torch.no_grad():
        outputs = objective(batch, draw)
    first, second = outputs.image, outputs.text
    views = [batch.pixels, batch.more_views[0]] if side == "image" else [batch.tokens, batch.more_tokens[0]]
    fields = "pixels" if side == "image" else "tokens"
    embedded = [getattr(objective.model(replace(batch, **{fields: view})), side) for view in views]
    assert torch.equal({"image": first, "text": second}[side], embedded[0])
    assert not torch.allclose(*embedded)
    logits = (outputs.scale * first @ second.T).double()
    same = torch.tensor([[i // 2 == j // 2 for j in range(8)] for i in range(8)])
    by_row, by_column = (-(z.log_softmax(1)[m].view(8, 2).mean()) for z, m in ((logits, same), (logits.T, same.T)))
    assert float(objective.loss(outputs, batch)) == pytest.approx(float(by_row + by_column) / 2, rel=1e-5)


def test_texts_are_read_in_two_captions_where_there_are_two() -> None:
    items = rows("text", 4)
    collator = replace(one_tower("text").collator(), captions=2)
    visited = [items.visit(i, draw) for i, draw in enumerate([0, 1, 0, 1])]
    batch = collator(visited)
    read = collator.tokenizer.batch_decode
    words = [read(tokens["input_ids"], skip_special_tokens=True) for tokens in (batch.tokens, *batch.more_tokens)]
    for row, (one, two) in enumerate(zip(*words, strict=True)):
        assert sorted([one, two]) == sorted(text.lower() for text in items[row].texts)
    assert items.visit(1, 1).texts[0] == items[1].texts[1]
    single = replace(visited[0], texts=("red mug",))
    again = collator([single])
    assert torch.equal(again.tokens["input_ids"], again.more_tokens[0]["input_ids"])


@pytest.mark.parametrize("side", OTHER)
def test_recall_within_a_side_equals_counting_by_hand(side: str) -> None:
    model, items = one_tower(side), rows(side)
    result = evaluate(model, items, ks=(1, 3), bootstrap=0)
    (direction,) = result.directions.values()
    vectors, codes = direction.queries.embeddings, items.codes[direction.queries.rows]
    assert len(vectors) == (24 if side == "image" else 36)  # of two equal captions of a product one counts
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    recall = []
    for i, best in enumerate(np.argsort(-scores, axis=1, kind="stable")[:, :3]):
        recall.append((codes[best] == codes[i]).sum() / ((codes == codes[i]).sum() - 1))
    assert result.report.metrics[f"{side}_to_{side}"]["recall@3"].value == pytest.approx(np.mean(recall))
    found = evaluate_product_retrieval(model, items, ks=(1,), bootstrap=0)
    assert list(found.metrics) == [{"image": "image", "text": "title"}[side]]
    assert f"rows have {len(vectors) + 12} captions" in result.report.table() if side == "text" else True


def test_queries_of_a_relevance_file_search_texts() -> None:
    items = rows("text")
    queries = Qrels(("q0",), (factories.TITLES[18],), ({"r6": 1.0, "r18": 1.0},))
    result = evaluate(one_tower("text"), items, queries=queries, ks=(1,), bootstrap=0)
    assert list(result.directions) == ["text_to_text"]
    assert result.report.metrics["text_to_text"]["hit@1"].value == 1
    with pytest.raises(ConfigError, match="no text tower"):
        evaluate(one_tower("image"), rows("image"), queries=queries, bootstrap=0)


def test_what_cannot_be_measured_is_said_before_the_training(tmp_path: Path) -> None:
    alone = ItemDataset.from_rows([replace(row, product_id=row.id) for row in rows("image")])
    with pytest.raises(DataError, match=r"no two images belong to one product.*columns\.product_id"):
        evaluate(one_tower("image"), alone, bootstrap=0)
    with pytest.raises(DataError, match="no images to search"):
        evaluate(one_tower("image"), rows("text"), bootstrap=0)
    with pytest.raises(DataError, match="no texts to search with"):
        evaluate(factories.model(), rows("image"), bootstrap=0)
    card = write_card(tmp_path, "image")
    card.write_text(card.read_text().replace("products: 200", "products: 200, views: 1"))
    options = ["--data.card", card, "--out", tmp_path / "run"]
    with pytest.raises(DataError, match="no two images belong to one product"):
        run(recipe(*options, "--model.text", "None"))
    with pytest.raises(
        ConfigError, match=r"a tower for texts, and the rows of drawn_images have none; type --model\.text"
    ):
        run(recipe(*options, "--overwrite"))


def test_a_two_tower_model_takes_the_side_that_a_card_has(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, items = factories.spread_model(), rows("image")
    assert list(evaluate_product_retrieval(model, items, ks=(1,), bootstrap=0).metrics) == ["image"]
    model.save_pretrained(tmp_path / "model")
    card = write_card(tmp_path, "image")
    words = ("index", tmp_path / "model", "--data.card", card, "--split", "test", "--out", tmp_path / "shop")
    assert command(*words) == 0
    assert command("search", tmp_path / "shop", "--text", "mug") == 0
    assert len(capsys.readouterr().out.strip().splitlines()) >= 10


def test_rows_that_a_tower_cannot_see_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one_tower("image").save_pretrained(tmp_path / "model")
    words = ("index", tmp_path / "model", "--data.card", write_card(tmp_path, "text"), "--out", tmp_path / "shop")
    assert command(*words) == 1
    assert "no row of drawn_texts has an image" in capsys.readouterr().out and not (tmp_path / "shop").exists()
    table = catalogs.rows(6)
    table[2]["photo"] = None
    catalogs.write_parquet(tmp_path / "source" / "train.parquet", table)
    (tmp_path / "card.md").write_text(
        "---\nname: gaps\ncolumns: {id: sku, product_id: item, text: title, image: photo}\n---\n"
    )
    words = ("index", tmp_path / "model", "--data.card", tmp_path / "card.md", "--data.source", tmp_path / "source")
    assert command(*words, "--out", tmp_path / "shop") == 0
    assert "1 rows have no image, which is all that this model embeds" in capsys.readouterr().out


@pytest.mark.parametrize("side", OTHER)
def test_a_source_with_one_side_is_read_and_checked(side: str, tmp_path: Path) -> None:
    catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(8))
    columns = {"text": "title", "image": "photo"}
    card = catalogs.card(**{"text": None, "image": None, side: columns[side]})
    items = load_items(card, "train", source=tmp_path)
    assert len(items) == 8 and items[0].texts == (() if side == "image" else ("red mug 0",))
    assert (items[0].image is None) == (side == "text")
    report = check_card(card, source=tmp_path)
    assert report.splits[0].rows == 8 and not report.splits[0].left_out
    assert report.titles.values == (0 if side == "image" else 4)
    bare = replace(card, columns=Columns(**{side: columns[side]}))
    assert len(load_items(bare, "train", source=tmp_path)) == 8


def test_a_card_names_at_least_one_side(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither text nor image"):
        Columns(id="sku")
    (tmp_path / "card.md").write_text(
        "---\nname: x\ncolumns: {id: sku, image: photo, product_id: normalized_text}\n---\n"
    )
    with pytest.raises(CardError, match=r"normalized_text, and columns names no text"):
        load_card(tmp_path / "card.md")
    assert DataCard(name="x", columns=Columns(image="photo")).columns.captions == ()


def test_an_explanation_points_at_what_counts() -> None:
    model = one_tower("image")
    found = explain(model, image=factories.photo(0), target=factories.photo(0))
    assert found.score == pytest.approx(1, abs=1e-5) and found.words == [] and (found.heat > -1e-6).all()
    assert draw_explanation(found).height > 320
    told = explain(one_tower("text"), "red mug", target="red mug")
    assert [word for word, _ in told.words] == ["red", "mug"] and told.heat is None
    assert told.score == pytest.approx(1, abs=1e-5) and all(weight > 0.01 for _, weight in told.words)
    assert draw_explanation(told).width > 0
    with pytest.raises(ConfigError, match="no heat map"):
        told.heat_map()
    with pytest.raises(ConfigError, match="compares a text with an image"):
        explain(factories.model(), "red mug", factories.photo(), target="blue mug")
