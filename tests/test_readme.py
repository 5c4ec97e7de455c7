"""What the README shows is true: its Python runs, its card loads, its commands and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import factories
import pytest

from dualtower.cli import main
from dualtower.data.cards import load_card
from dualtower.launcher import parse_overrides
from dualtower.training.config import RunConfig

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line.split("  #")[0] for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.split(program, 1)[1]) for line in lines if program in line]


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    factories.model().save_pretrained(tmp_path / "runs" / "clip_style" / "model")
    for name in ("shirt.jpg", "mug.jpg"):
        factories.photo().save(tmp_path / name)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"\[\[.*\]\]", capsys.readouterr().out)


def test_example_card_loads(tmp_path: Path) -> None:
    path = tmp_path / "my_card.md"
    path.write_text(blocks("markdown")[0], encoding="utf-8")
    card = load_card(path)
    assert card.name == "my-shop" and card.columns.image == "photo"


@pytest.mark.parametrize("words", commands("dualtower "), ids=" ".join)
def test_commands_are_understood(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0


@pytest.mark.parametrize("words", commands("accelerate launch --quiet "), ids=" ".join)
def test_recipes_exist_and_take_their_options(words: list[str]) -> None:
    recipe, *options = words
    assert (REPOSITORY / recipe).is_file()
    assert isinstance(parse_overrides(RunConfig(), options), RunConfig)


def test_launched_recipes_end_without_the_launchers_own_traceback() -> None:
    """After an error of ours, `accelerate launch` adds a traceback of its own, unless it is told to be quiet."""
    texts = {"README.md": README} | {p.name: p.read_text() for p in (REPOSITORY / "recipes").glob("*.py")}
    assert sum(text.count("accelerate launch --quiet ") for text in texts.values()) > 10
    loud = r"accelerate launch (?!--quiet|--cpu --num_processes 2` starts only one)"
    assert [name for name, text in texts.items() if re.search(loud, text)] == []


def test_files_and_cards_that_are_named_exist() -> None:
    named = re.findall(r"`((?:recipes|benchmarks|data_cards|dualtower)/[\w/.]+)`", README)
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_files_that_the_documents_name_are_there() -> None:
    """Also in benchmarks/README.md and CONTRIBUTING.md, whose commands nobody runs here."""
    for document in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        text = (REPOSITORY / document).read_text(encoding="utf-8").replace("data_cards/yours.md", "")
        named = set(re.findall(r"\b(?:benchmarks|recipes|data_cards|dualtower|tests)/[\w/]+\.(?:py|md)\b", text))
        assert named and [path for path in sorted(named) if not (REPOSITORY / path).is_file()] == [], document


def test_headline_figures_stand_in_the_tables() -> None:
    """The README's few ratios are those of the measurements, which scripts write anew."""
    tables = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    headlines = [line for line in README.split("## Measured")[1].split("\n## ")[0].splitlines() if line[:1] == "|"]
    figures = re.findall(r"\b\d\.\d+|\b\d+,\d{3}\b|\d+(?= %)", " ".join(headlines))
    assert len(figures) > 10
    assert [figure for figure in figures if figure not in tables] == []
