"""A card is read strictly: what it says is used, and what it misspells is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualtower.data.cards import CardSource, HashSplit, load_card
from dualtower.errors import CardError, UnknownKey

REPOSITORY = Path(__file__).parent.parent
CARDS = sorted((REPOSITORY / "data_cards").glob("*.md"))

CARD = """---
name: shop
title: The winter catalogue
source: {path: ../shop, builder: csv, options: {sep: ";"}}
columns:
  id: sku
  product_id: normalised_text
  text: ["{brand} {title}", title]
  image: photo
  attributes: [colour]
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
        "The winter catalogue",
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
        "attributes": ["colour"],
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
        ("licence: our own", "license: our own", "license"),
        ("  atributes: [colour]", "  attributes: [colour]", "attributes"),
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


def test_unknown_card_lists_its_neighbours(tmp_path: Path) -> None:
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
    assert card.source.hub or card.source.drawn
    assert card.note, "a card says how it was verified, or why not"
    assert all(baseline.source.startswith("https://") for baseline in card.baselines)
    assert all(0 < value <= 1 for baseline in card.baselines for value in baseline.metrics.values())


def test_there_are_enough_cards() -> None:
    assert len([path for path in CARDS if load_card(path).source.hub]) >= 9
