"""The command does what the README says, and wrong words get a message that helps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import factories
import pytest

from dualtower import DualTower, ModelConfig, RerankerConfig
from dualtower.cli import main
from dualtower.data.synthetic.catalog import synthesize_catalog
from dualtower.data.transforms.images import ImageSettings
from dualtower.data.transforms.tokenizer import train_tokenizer
from dualtower.models.towers import ImageTowerConfig, TextTowerConfig

CARDS = Path(__file__).parent.parent / "data_cards"

OWN_CARD = """---
name: shapes
source: {{path: {folder}}}
license: none
columns:
  id: id
  product_id: product_id
  text: title
  image: image
  attributes: [object, color]
splits: {{by_hash: {{column: product_id, validation: 0.1, test: 0.2}}}}
---
Shapes on disk.
"""


def command(*words: object) -> int:
    """Run the command; returns its exit status."""
    try:
        main([str(w) for w in words])
    except SystemExit as end:
        if isinstance(end.code, str):  # Python prints the message and exits with 1
            print(end.code)
            return 1
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model folder."""
    titles = [t for texts in synthesize_catalog(split="test").texts for t in texts]
    tokenizer = train_tokenizer(titles, vocab_size=300)
    config = ModelConfig(
        text=TextTowerConfig(name="textcnn", width=16),
        image=ImageTowerConfig(name="resnet10t", options={"channels": (8, 8, 16, 16), "stem_width": 8}),
        image_settings=ImageSettings(height=32, width=24),
        embed_dim=16,
    )
    folder = tmp_path_factory.mktemp("model") / "model"
    DualTower.create(config, tokenizer).save_pretrained(folder)
    return folder


def test_what_the_system_refuses_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("evaluate", model, "--data.card", CARDS / "synthetic.md", "--bootstrap", 10, "--json", tmp_path)
    assert command(*words) == 1
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert said.startswith("IsADirectoryError: ") and said.endswith(str(tmp_path))


def test_a_missing_reranker_is_said_before_the_evaluation(model: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("evaluate", model, "--data.card", CARDS / "synthetic.md", "--rerank", 5) == 1
    printed = capsys.readouterr().out
    assert "no re-ranker" in printed and "recall@10" not in printed


def test_markdown_without_front_matter_is_no_card(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# A shop\n")
    assert command("evaluate", model, "--data.card", "synthetik.md") == 1
    printed = capsys.readouterr().out
    assert "Did you mean 'synthetic'" in printed and "README" not in printed


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    reading = 'set -o pipefail; "$0" -m dualtower search --help | head -c 10'
    done = subprocess.run(["bash", "-c", reading, sys.executable], capture_output=True, text=True, timeout=300)
    assert done.stdout and "Traceback" not in done.stderr


def test_evaluate_prints_a_table_and_writes_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "figures.json"
    words = ("evaluate", model, "--data.card", CARDS / "synthetic.md", "--json", out, "--breakdown", "color")
    assert command(*words, "--bootstrap", 50, "--report", tmp_path / "report") == 0
    printed = capsys.readouterr().out
    assert "recall@10" in printed and "chance" in printed
    figures = json.loads(out.read_text())
    for direction in ("text_to_image", "image_to_text"):
        figure = figures[direction]["recall@10"]
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert figures["protocol"]["split"] == "test"
    by_color = figures["breakdowns"]["color"]["text_to_image"]
    queries = figures["protocol"]["directions"]["text_to_image"]["queries"]
    assert sum(row["queries"] for row in by_color) == queries and by_color[0]["recall@10"]["low"] is not None
    assert "text → image by color" in printed and f"| {by_color[0]['value']}" in printed
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["breakdowns"] == figures["breakdowns"]
    assert (tmp_path / "report" / "report.md").exists()


def test_similar_products_are_measured(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [
        "evaluate",
        model,
        "--data.card",
        CARDS / "synthetic.md",
        "--task",
        "product-to-product",
        "--bootstrap",
        "10",
    ]
    assert command(*words, "--relevance", "object,color", "--json", tmp_path / "similar.json") == 0
    assert "average" in capsys.readouterr().out
    figures = json.loads((tmp_path / "similar.json").read_text())
    assert figures["protocol"]["relevance"] == "same object and color"
    assert 0 < figures["product_to_product"]["title"]["ndcg@10"]["value"] <= 1
    assert command(*words, "--rerank", "5") == 1
    assert "takes no --rerank" in capsys.readouterr().out
    assert command(*words, "--breakdown", "color", "--report", tmp_path / "report") == 1
    assert "takes no --breakdown, no --report" in capsys.readouterr().out


def test_reranked_figures_stand_beside_the_others(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    heads = DualTower.from_pretrained(model).with_heads(reranker=RerankerConfig(layers=1, width=16, heads=2))
    heads.save_pretrained(tmp_path / "model")
    words = ["--data.card", CARDS / "synthetic.md", "--split", "validation", "--bootstrap", "10", "--rerank", "3"]
    assert command("evaluate", tmp_path / "model", *words, "--json", tmp_path / "figures.json") == 0
    assert "best 3 re-ranked" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["reranked"]["gain"]["text_to_image"]["mrr"]["value"] == 0  # it is untrained
    assert command("evaluate", model, *words) == 1
    assert "no re-ranker" in capsys.readouterr().out


def test_explanation_is_drawn(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    factories.photo().save(tmp_path / "mug.png")
    words = ["explain", model, "--text", "red mug", "--image", tmp_path / "mug.png"]
    assert command(*words, "--out", tmp_path / "why.png") == 0
    assert "red" in capsys.readouterr().out and (tmp_path / "why.png").stat().st_size > 1000
    assert command("explain", model, "--text", "red mug", "--image", tmp_path / "no.png") == 1
    assert "no image at" in capsys.readouterr().out


def test_draw_then_check_then_evaluate_a_folder_of_ones_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command("data", "synthesize", tmp_path / "shapes", "--split", "test") == 0
    card = tmp_path / "card.md"
    card.write_text(OWN_CARD.format(folder=tmp_path / "shapes"))
    assert command("data", "check", card, "--json", tmp_path / "findings.json") == 0
    assert "rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "findings.json").read_text())
    assert command("evaluate", model, "--data.card", card, "--bootstrap", 20) == 0
    assert command("data", "synthesize", tmp_path / "shapes") == 1
    assert "exists already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "nowhere", "--data.card", CARDS / "synthetic.md"), "nowhere"),
        (("evaluate", "MODEL", "--data.card", "no_card.md"), "no_card.md"),
        (("evaluate", "MODEL", "--data.card", CARDS / "synthetic.md", "--split", "tset"), "Did you mean 'test'"),
        (("evaluate", "MODEL", "--data.card", CARDS / "synthetic.md", "--qrels", "no.json"), "no.json"),
        (("data", "check", CARDS / "fashion_products.md", "--data.source", "no_folder/"), "no_folder"),
    ],
)
def test_wrong_words_are_named(
    words: tuple, message: str, model: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status = command(*(model if w == "MODEL" else w for w in words))
    printed = capsys.readouterr()
    assert status == 1 and message in printed.out + printed.err


@pytest.mark.parametrize("words", [(), ("data",), ("evaluate",), ("data", "check"), ("data", "synthesize")])
def test_every_level_has_help(words: tuple, capsys: pytest.CaptureFixture) -> None:
    assert command(*words, "--help") == 0
    assert "usage: dualtower" in capsys.readouterr().out


def test_unknown_option_names_the_nearest(capsys: pytest.CaptureFixture) -> None:
    assert command("evaluate", "m", "--data.card", "c", "--bootstrp", 3) == 2
    assert "--bootstrap" in capsys.readouterr().err
