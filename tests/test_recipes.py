"""Every recipe runs the whole way with --smoke, on one process and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
RECIPES = sorted((REPOSITORY / "recipes").glob("*.py"))


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        arguments, cwd=folder, env=environment, text=True, capture_output=True, timeout=600, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory that sees the data cards but keeps the runs to itself."""
    (tmp_path / "data_cards").symlink_to(REPOSITORY / "data_cards")
    return tmp_path


def complete_run(folder: Path) -> dict:
    (out,) = (folder / "runs" / "smoke").iterdir()
    assert (out / "model" / "model.safetensors").exists() and (out / "report.md").exists()
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_smoke(recipe: Path, project: Path) -> None:
    done = run([sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(recipe), "--smoke"], project)
    assert done.returncode == 0, done.stderr
    metrics = complete_run(project)
    assert 0 <= metrics["text_to_image"]["recall@10"]["value"] <= 1
    assert 0 <= metrics["image_to_text"]["recall@10"]["value"] <= 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_smoke_on_two_processes(recipe: Path, project: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = run([*torchrun, str(recipe), "--smoke"], project)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stderr + done.stdout, "two processes were asked for"
    complete_run(project)


def test_unknown_option_names_the_nearest(project: Path) -> None:
    done = run([sys.executable, str(RECIPES[0]), "--smoke", "--train.bach-size", "3"], project)
    assert done.returncode == 2
    assert "--train.batch-size" in done.stdout + done.stderr


def test_budget_on_the_command_line_replaces_the_recipes() -> None:
    from dualtower.launcher import parse_overrides
    from dualtower.training.config import RunConfig, TrainConfig

    base = RunConfig(train=TrainConfig(epochs=30))
    train = parse_overrides(base, ["--train.minutes", "10"]).train
    assert (train.epochs, train.steps, train.minutes) == (None, None, 10)
    assert parse_overrides(base, ["--train.lr", "1e-4"]).train == TrainConfig(epochs=30, lr=1e-4)
