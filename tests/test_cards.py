"""A card is read strictly: what it says is used, and what it misspells is named."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import subprocess
from pathlib import Path

import catalogs
import pytest
from catalogs import own_cache  # noqa: F401

from dualtower.data.cards import CardSource, HashSplit, load_card
from dualtower.data.loading import load_items
from dualtower.errors import CardError, UnknownKey
from dualtower.evaluation import load_qrels

REPOSITORY = Path(__file__).parent.parent
CARDS = sorted((REPOSITORY / "data_cards").glob("*.md"))

CARD = """---
name: shop
title: The winter catalog
source: {path: ../shop, builder: csv, options: {sep: ";"}}
columns:
  id: sku
  product_id: normalized_text
  text: ["{brand} {title}", title]
  image: photo
  attributes: [color]
splits:
  named: {train: train, test: "holdout-*.csv"}
  by_hash: {column: brand, validation: 0.1, test: 0.2}
license: our own
languages: [en, zh]
relevance: Equal titles.
caveats: [Some photos show two articles.]
baselines:
  - model: CLIP
    protocol: titles to photos
    metrics: {recall@1: 0.25, recall@10: 1}
    source: https://example.org
verified: true
note: run in the tests
---

# The shop

Prose.
"""


def write(folder: Path, text: str = CARD, name: str = "shop.md") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_all_keys(tmp_path: Path) -> None:
    path = write(tmp_path)
    card = load_card(path)
    assert (card.name, card.title, card.license, card.languages) == (
        "shop",
        "The winter catalog",
        "our own",
        ["en", "zh"],
    )
    assert card.source == CardSource(path="../shop", builder="csv", options={"sep": ";"})
    assert card.columns.captions == ("{brand} {title}", "title")
    assert card.columns.named() == {
        "text": ["brand", "title", "title"],
        "image": ["photo"],
        "id": ["sku"],
        "product_id": [],
        "attributes": ["color"],
    }
    assert card.splits.named["test"] == "holdout-*.csv"
    assert card.splits.by_hash == HashSplit("brand", 0.1, 0.2)
    assert card.baselines[0].metrics == {"recall@1": 0.25, "recall@10": 1.0}
    assert (card.verified, card.note, card.path) == (True, "run in the tests", path)
    assert card.body == "# The shop\n\nProse."


def test_smallest_card(tmp_path: Path) -> None:
    card = load_card(write(tmp_path, "---\nname: s\ntitle: S\ncolumns: {text: title}\n---"))
    assert (card.columns.image, card.columns.id, card.splits.by_hash) == (None, None, HashSplit())
    assert (card.license, card.verified, card.body) == ("not stated", False, "")


def test_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "shop.md"
    path.write_bytes(CARD.replace("\n", "\r\n").encode())
    assert load_card(path).columns == load_card(write(tmp_path, name="unix.md")).columns


@pytest.mark.parametrize(
    ("wrong", "right", "key"),
    [
        ("licens: our own", "license: our own", "license"),
        ("  atributes: [color]", "  attributes: [color]", "attributes"),
        ("by_hsh: {column", "by_hash: {column", "by_hash"),
        ("{path: ../shop, bilder: csv", "{path: ../shop, builder: csv", "builder"),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, wrong: str, right: str, key: str) -> None:
    assert right in CARD
    with pytest.raises(UnknownKey, match=f"Did you mean '{key}'"):
        load_card(write(tmp_path, CARD.replace(right, wrong)))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# no front matter\n", "between two lines of '---'"),
        ("---\nname: [unclosed\n---\n", "not YAML"),
        ("---\n- a list\n---\n", "must be a mapping"),
        ("---\n---\n", "must be a mapping|between two lines"),
        ("---\nname: s\n---\n", "title|columns"),
        (CARD.replace("image: photo", "image: 3"), "image"),
        (CARD.replace("{path: ../shop,", "{path: ../shop, hub: user/shop,"), "not hub and path"),
        (CARD.replace("test: 0.2", "test: 0.95"), "leave nothing to train on"),
    ],
)
def test_card_errors_name_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(CardError, match=complaint) as caught:
        load_card(write(tmp_path, text))
    assert "shop.md" in str(caught.value)


def test_unknown_card_lists_its_neighbors(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(CardError, match=r"cards in .*: shop\. Did you mean 'shop'"):
        load_card(tmp_path / "shpo.md")
    with pytest.raises(CardError, match="Did you mean 'fashion_products'"):
        load_card("fashion_product")


def test_card_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_card("fashion_products").name == "fashion_products"
    (tmp_path / "data_cards").mkdir()
    write(tmp_path / "data_cards")
    monkeypatch.chdir(tmp_path)
    assert load_card("shop").name == "shop"


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_our_cards(path: Path) -> None:
    card = load_card(path)
    assert card.name == path.stem
    assert card.title and card.license and card.languages and card.relevance and card.body
    assert card.note, "a card says how it was verified, or why not"
    if card.source.builder == "images":  # of no catalog: whoever uses it brings the images
        return
    if not (card.source.hub or card.source.synthetic):  # nobody may pass the rows on: the card says how to make them
        assert not card.verified and "not run" in card.note and "https://" in card.body
    assert all(baseline.source.startswith("https://") for baseline in card.baselines)
    assert all(0 < value <= 1 for baseline in card.baselines for value in baseline.metrics.values())


def test_there_are_cards_of_many_publishers() -> None:
    named = {path.stem for path in CARDS}
    assert len([path for path in CARDS if load_card(path).source.hub]) >= 9
    assert named >= {
        "stanford_online_products",
        "abo",
        "shopee",
        "product1m",
        "muge",
        "fashion_iq",
        "fashion_gen",
        "esci_sqid",
    }
    assert len([name for name in named if name.startswith("marqo_")]) < len(named) / 2


def script(card: str, begins: str) -> str:
    """The indented block of a card that begins so."""
    lines = load_card(card).body.splitlines()
    first = lines.index(f"    {begins}")
    block = itertools.takewhile(lambda line: line.startswith("    ") or not line, lines[first:])
    return "\n".join(line[4:] for line in block)


def test_what_the_card_of_muge_says_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("muge").mkdir()
    photo = base64.b64encode(catalogs.jpeg("red", 900)).decode()
    for split in ("train", "valid"):
        Path(f"{split}_imgs.tsv").write_text(f"11\t{photo}\n12\t{photo}\n13\t{photo}\n")
        queries = [
            {"text_id": 1, "text": "托特包", "image_ids": [11, 12]},
            {"text_id": 2, "text": "斜挎包", "image_ids": [12]},
        ]
        Path(f"{split}_texts.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    exec(script("muge", "import json"), {})
    items = load_items(load_card("muge"), "validation", source="muge")
    assert items.ids == ["11", "12", "13"]
    assert items.texts == [("托特包",), ("托特包", "斜挎包"), ("-",)]
    assert items[0].image == catalogs.jpeg("red", 900)
    assert load_qrels("valid_qrels.json").relevant == ({"11": 1, "12": 1}, {"12": 1})


def test_what_the_card_of_stanford_online_products_says_to_do(tmp_path: Path) -> None:
    (tmp_path / "mug_final").mkdir()
    for part, first in (("train", 0), ("test", 2)):
        lines = ["image_id class_id super_class_id path"]
        for i in (first, first + 1):
            (tmp_path / "mug_final" / f"{i}_0.JPG").write_bytes(catalogs.jpeg("red", 12 + i))
            lines.append(f"{i} {first} 9 mug_final/{i}_0.JPG")
        (tmp_path / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    commands = script("stanford_online_products", "for part in train test; do").split("dualtower")[0]
    subprocess.run(["bash", "-c", commands], cwd=tmp_path, check=True)
    items = load_items(load_card("stanford_online_products"), "test", source=tmp_path)
    assert (items.ids, items.product_ids, items.texts) == (["2", "3"], ["2", "2"], [("mug",), ("mug",)])


def test_what_the_card_of_abo_says_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small/00").mkdir(parents=True)
    Path("small/00/a.jpg").write_bytes(catalogs.jpeg("red"))
    with gzip.open("images.csv.gz", "wt") as stream:
        stream.write("image_id,height,width,path\nI1,16,12,00/a.jpg\n")
    name = [{"language_tag": "de_DE", "value": "Becher"}, {"language_tag": "en_US", "value": "Mug"}]
    listings = [
        {"item_id": "B1", "item_name": name, "main_image_id": "I1", "product_type": [{"value": "CUP"}]},
        {"item_id": "B2", "item_name": name[:1], "main_image_id": "I1"},
        {"item_id": "B3", "item_name": name, "main_image_id": "gone"},
    ]
    with gzip.open("listings_0.json.gz", "wt") as stream:
        stream.writelines(json.dumps(listing) + "\n" for listing in listings)
    exec(script("abo", "import csv, glob, gzip, json"), {})
    items = load_items(load_card("abo"), "all", source=tmp_path)
    assert (items.ids, items.texts, items.attributes["product_type"]) == (["B1"], [("Mug",)], ["CUP"])


def test_cards_with_graded_queries() -> None:
    esci, shopping = load_card("esci_sqid").queries, load_card("marqo_gs_10m").queries
    assert esci is not None and esci.grades == {"Exact": 1.0, "Substitute": 0.1, "Complement": 0.01, "Irrelevant": 0.0}
    assert shopping is not None and (shopping.text, shopping.id, shopping.grade) == (
        "query",
        "query_id",
        "score_linear",
    )
