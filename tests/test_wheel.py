"""What is installed from a wheel works in any folder: nothing is found only because a checkout lies around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "dualtower", "data_cards")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "checkout").mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / "checkout" / name)
    build = [
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(folder),
        "./checkout",
    ]
    subprocess.run([sys.executable, *build], cwd=folder, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, *install], cwd=folder, check=True)
    return folder


def run(installed: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder` with the installed package in front of every checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True)


def test_nothing_is_left_out(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "dualtower").rglob("*.py")}
    cards = {f"dualtower/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "data_cards").glob("*.md")}
    pages = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "dualtower/serving/page").iterdir()}
    assert len(cards) >= 12 and len(pages) >= 3
    assert (sources | cards | pages) - inside == set()
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"dualtower"}


def test_cards_are_found_from_any_folder(installed: Path, tmp_path: Path) -> None:
    code = "import dualtower; from dualtower.data.cards import load_card; print(dualtower.__file__)"
    for name in ("synthetic", "fashion_products", "data_cards/synthetic.md"):
        code += f"; print(load_card({name!r}).name)"
    printed = run(installed, tmp_path, "-c", code)
    assert printed.stderr == "" and printed.stdout.splitlines() == [
        str(installed / "dualtower" / "__init__.py"),
        "synthetic",
        "fashion_products",
        "synthetic",
    ]
    missing = run(installed, tmp_path, "-m", "dualtower", "data", "check", "data_cards/synthetci.md")
    assert missing.returncode == 1 and "Did you mean 'synthetic'" in missing.stderr


@pytest.mark.parametrize("recipe", ["train_clip_style", "train_chinese_titles"])
def test_a_recipe_finds_its_card_beside_no_checkout(installed: Path, tmp_path: Path, recipe: str) -> None:
    shutil.copy(REPOSITORY / "recipes" / f"{recipe}.py", tmp_path)
    code = (
        f"from {recipe} import config; from dualtower.data.cards import load_card; "
        "from dualtower.data.loading import load_items; print(load_items(load_card(config().data.card), 'test'))"
    )
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "split='test', rows=" in done.stdout


def test_a_strangers_mypy_sees_the_types(wheel: Path, tmp_path: Path) -> None:
    assert "dualtower/py.typed" in zipfile.ZipFile(wheel).namelist()
    environment = tmp_path / "environment"  # of nothing but the wheel: installed packages count only with a py.typed
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(packages), str(wheel)]
    subprocess.run([sys.executable, *install], cwd=tmp_path, check=True)
    (tmp_path / "stranger.py").write_text(
        "from dualtower import load_card\n"
        "from dualtower.errors import brief\n"
        "reveal_type(load_card('synthetic').name)\n"
        "length: int = brief('a')\n"
    )
    check = ["-m", "mypy", "--python-executable", str(environment / "bin" / "python"), "--cache-dir", "cache"]
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [sys.executable, *check, "stranger.py"], cwd=tmp_path, env=outside, capture_output=True, text=True
    )
    assert 'Revealed type is "str"' in done.stdout.replace("builtins.", ""), done.stdout + done.stderr
    assert 'stranger.py:4: error: Incompatible types in assignment (expression has type "str"' in done.stdout
    assert done.stdout.count("error") == 2  # and "Found 1 error"
