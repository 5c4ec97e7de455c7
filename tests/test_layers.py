"""A room imports only from floors below its own: the table of CONTRIBUTING.md, held by import-linter."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in a folder against the contracts in its pyproject.toml."""
    command = "from importlinter.cli import lint_imports_command as lint; lint()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_rooms_import_only_from_floors_below() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("evaluation/metrics.py", "from dualtower.training import config", "metrics -> dualtower.training.config"),
        (
            "losses/infonce.py",
            "from dualtower.models.dual_tower import DualTower",
            "infonce -> dualtower.models.dual_tower",
        ),
        ("data/cards.py", "    from dualtower.losses import LossConfig", "cards -> dualtower.losses"),  # not above, but
        ("evaluation/evaluator.py", "import dualtower", "evaluator -> dualtower"),
        ("evaluation/evaluator.py", "from dualtower import DualTower", "evaluator -> dualtower"),
        ("attic.py", "", "attic"),
    ],
)
def test_an_import_from_above_is_found(file: str, line: str, said: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dualtower", tmp_path / "dualtower", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "dualtower" / file).open("a") as stream:
        stream.write(f"\n\ndef late():\n    {line.strip() or 'pass'}\n")  # inside functions, too
    done = lint(tmp_path)
    assert done.returncode == 1 and said in " ".join(done.stdout.split()), done.stdout + done.stderr


def test_the_table_of_floors_is_the_one_that_is_tested() -> None:
    floors = {}
    for number, rooms in re.findall(r"^\| (\d) \| (`[^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M):
        floors |= {room.removesuffix(".py"): int(number) for room in re.findall(r"`([\w.]+?)/?`", rooms)}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [re.split(r" [|:] ", layer) for layer in contracts[0]["layers"]]
    assert {room for layer in layers for room in layer} == floors.keys()
    by_layer = [{floors[room] for room in layer} for layer in layers]
    assert all(len(numbers) == 1 for numbers in by_layer)
    assert all(min(above) >= max(below) for above, below in pairwise(by_layer))
