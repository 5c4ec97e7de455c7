"""`dualtower probe`: a table of models and shares of the labels, and words that help where it cannot be made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import factories
import pytest
from test_cli import command
from test_label_probe import image

from dualtower import DualTower

CARD = """---
name: colors
source: {{path: {folder}}}
license: none
columns: {{id: id, product_id: id, text: title, {image}attributes: [color, shape, price], numeric: [price]}}
splits: {{named: {{train: train, test: test}}}}
---
Noise of one color each.
"""
COLORS = {"red": 24, "green": 12, "blue": 6}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card, a card without images, and three models: of images and texts, of either alone."""
    folder = tmp_path_factory.mktemp("shop")
    number = 0
    for split, share in (("train", 1), ("test", 2)):
        lines = ["file_name,id,title,color,shape,price"]
        (folder / "data" / split).mkdir(parents=True)
        for color, count in {**COLORS, "": 2}.items():
            for _ in range(count // share):
                (folder / "data" / split / f"{number}.png").write_bytes(image(color or "gray", number))
                lines.append(f"{number}.png,{number},a thing,{color},round,{number}")
                number += 1
        (folder / "data" / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "card.md").write_text(CARD.format(folder=folder / "data", image="image: image, "))
    (folder / "texts.md").write_text(CARD.format(folder=folder / "data", image=""))
    both = factories.spread_model()
    both.save_pretrained(folder / "both")
    DualTower(replace(both.config, text=None)).save_pretrained(folder / "images")
    DualTower.create(replace(factories.config("bow"), image=None), factories.tokenizer()).save_pretrained(
        folder / "texts"
    )
    return folder


def words(shop: Path, *models: str, card: str = "card.md", label: str = "color") -> tuple[object, ...]:
    return "probe", *(shop / model for model in models), "--data.card", shop / card, "--label", label


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_models_and_baselines_stand_in_one_table(
    method: str, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ("--fractions", 0.1, 1, "--draws", 2, "--baselines", "--bootstrap", 20, "--json", tmp_path / "probe.json")
    assert command(*words(shop, "both", "images"), "--method", method, *options) == 0
    printed = capsys.readouterr().out
    names = [str(shop / "both"), str(shop / "images"), f"random weights of {shop / 'both'}"]
    names += [f"random weights of {shop / 'images'}", "raw 16x16 pixels"]
    cells = json.loads((tmp_path / "probe.json").read_text())["cells"]
    assert [(cell["model"], cell["fraction"], cell["labels"]) for cell in cells] == [
        (name, *share) for name in names for share in ((0.1, 4), (1, 42))
    ]
    assert all(name in printed for name in names) and "macro-F1" in printed
    assert "Left out: 2 without color of the training rows; 1 without color of the test rows." in printed
    best = [cell["accuracy"]["value"] for cell in cells if cell["model"] == "raw 16x16 pixels"]
    assert best[1] > 0.9


def test_fine_tuning_beside_fresh_weights(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ("--method", "finetune", "--epochs", 4, "--scratch", "--fractions", 1, "--batch-size", 8)
    tail = (
        "--class-balanced",
        "--logit-adjustment",
        0.5,
        "--augmentation",
        "none",
        "--lr",
        3e-3,
        "--precision",
        "fp32",
    )
    out = tmp_path / "probe.json"
    assert command(*words(shop, "images"), *options, *tail, "--bootstrap", 20, "--json", out) == 0
    printed = capsys.readouterr()
    cells = json.loads(out.read_text())["cells"]
    assert [cell["model"] for cell in cells] == [str(shop / "images"), f"fresh weights of {shop / 'images'}"]
    assert "| fresh weights of" in printed.out and not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("images", "--label", "colour"), "no attribute 'colour'; known: color, price, shape. Did you mean 'color'?"),
        (("images", "--label", "shape"), "attribute 'shape' has one class, 'round'"),
        (("images", "--fractions", "0.1", "1.2"), "fraction 1.2 of the labels: give shares above 0 and at most 1"),
        (("images", "--fractions", "0.05"), "leaves a class without a row: 'color' has 3 classes; give 0.0715 or more"),
        (("images", "--data.card", "texts.md"), "no row has an image"),
        (("images", "texts"), "this model has no image tower"),
        (("images", "--split", "tset"), "Did you mean 'test'"),
        (("images", "--minutes", "2"), "--method knn takes no --minutes"),
        (("images", "--method", "linear", "--neighbors", "3"), "--method linear takes no --neighbors"),
        (("images", "--method", "finetune"), "needs one budget for each training: --minutes 2, or --epochs 20"),
        (("images", "--method", "finetune", "--minutes", "1", "--epochs", "1"), "needs one budget"),
        (
            ("images", "--method", "finetune", "--epochs", "1", "--baselines"),
            "takes no --baselines; --scratch measures",
        ),
        (("images", "--method", "finetune", "--epochs", "1", "--augmentation", "prodct"), "Did you mean 'product'"),
        (("images", "--neighbors", "0", "--fractions", "1"), "0 neighbors; give 1 or more"),
        (("images", "--draws", "0"), "0 draws of the labels"),
        (
            ("images", "--label", "price", "--method", "finetune", "--epochs", "1", "--class-balanced"),
            "'price' is a quantity",
        ),
        (
            ("images", "--method", "finetune", "--epochs", "1", "--augmentation", "card"),
            "data card 'colors' has none",
        ),
        ((), "name one model or more"),
    ],
)
def test_what_cannot_be_measured_is_said(
    given: tuple[str, ...], message: str, shop: Path, capsys: pytest.CaptureFixture
) -> None:
    models = [word for word in given if word in ("images", "texts")]
    options = [str(shop / word) if word.endswith(".md") else word for word in given if word not in models]
    needed = {"--data.card": str(shop / "card.md"), "--label": "color"}
    defaults = [word for name, value in needed.items() if name not in options for word in (name, value)]
    assert command("probe", *(shop / model for model in models), *defaults, *options) == 1
    printed = capsys.readouterr()
    assert message in printed.out + printed.err and "Traceback" not in printed.err
