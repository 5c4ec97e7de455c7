"""Every recipe runs the whole way with --smoke, on one process and on two, and takes what its command line says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from processes import SMALL_SPLITS

from dualtower import DualTower, RunConfig, load_card, load_items
from dualtower.launcher import parse_overrides
from dualtower.training.config import SMOKE_ROWS, SelfSupervisedName

REPOSITORY = Path(__file__).parent.parent
RECIPES = sorted((REPOSITORY / "recipes").glob("*.py"))
NAMES = [recipe.stem for recipe in RECIPES]
PRETRAINING = [name for name in NAMES if name.startswith("pretrain_")]
FROM_ANY = [name for name in NAMES if name not in ("pretrain_masked", "pretrain_attributes")]  # no ViT, no tower at all
MAIN = REPOSITORY / "recipes" / "train_clip_style.py"
EVERY = Path(__file__).with_name("every_recipe.py")
SMOKE = ["--smoke", "--train.cpu-threads", "1"]  # with two, two such tests at a time on two cores take twice as long
FP32 = ["--train.precision", "fp32"]  # to measure the precisions of every recipe once is enough
pytestmark = pytest.mark.slow


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
    (out,) = runs_of(folder, ["one"])
    return json.loads((out / "metrics.json").read_text())


def runs_of(folder: Path, names: list[str]) -> list[Path]:
    """Folders of the runs that were made, all of them whole."""
    found = sorted((folder / "runs" / "smoke").iterdir())
    assert len(found) == len(names)
    for out in found:
        assert (out / "model" / "model.safetensors").exists() and (out / "report.md").exists()
    return found


def check_metrics(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    objective = json.loads((out / "config.json").read_text())["objective"]
    if objective == "attributes":
        assert metrics["hidden_attributes"] and metrics["attribute_retrieval"], out
        return
    if objective in get_args(SelfSupervisedName):
        figures = [metrics["representation"][f"{probe} accuracy: color"] for probe in ("kNN-10", "linear probe")]
        figures.append(metrics["representation"]["image → image, same product: recall@10"])
    else:
        figures = [{"the model": metrics[way]["recall@10"]} for way in ("text_to_image", "image_to_text")]
    assert all(0 <= figure["the model"]["value"] <= 1 for figure in figures), out


def all_done(done: subprocess.CompletedProcess[str], names: list[str]) -> str:
    """What was said of runs that have all come to their end."""
    ends = [line for line in done.stdout.splitlines() if line.split(":")[0] in NAMES]
    assert ends == [f"{name}: 0" for name in names], done.stderr[-8000:]
    return done.stdout + done.stderr


def test_the_launcher_s_command(project: Path) -> None:
    done = run([sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(MAIN), *SMOKE], project)
    assert done.returncode == 0, done.stderr
    check_metrics(project / "runs" / "smoke" / "clip_style")


def test_every_recipe_on_one_process(project: Path) -> None:
    all_done(run([sys.executable, str(EVERY), ",".join(NAMES), *SMOKE], project), NAMES)
    for out in runs_of(project, NAMES):
        check_metrics(out)


def test_every_recipe_on_two_processes(project: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    said = all_done(run([*torchrun, str(EVERY), ",".join(NAMES), *SMOKE, *FP32, *SMALL_SPLITS], project), NAMES)
    assert said.count("2 process(es)") == len(NAMES), "two processes were asked for"
    for out in runs_of(project, NAMES):
        check_metrics(out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a recipe has trained."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data_cards").symlink_to(REPOSITORY / "data_cards")
    recipe = str(REPOSITORY / "recipes" / "train_clip_style.py")
    done = run([sys.executable, recipe, *SMOKE, *SMALL_SPLITS, "--out", "model_of_mine", "--train.steps", "2"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "model_of_mine" / "model"


def test_every_recipe_from_a_model_of_ones_own(trained: Path, project: Path) -> None:
    options = [*SMOKE, *FP32, *SMALL_SPLITS, "--data.max-rows", "128", "--base", str(trained), "--train.steps", "2"]
    said = all_done(run([sys.executable, str(EVERY), ",".join(FROM_ANY), *options], project), FROM_ANY)
    assert said.count(f"come from {trained}") == len(FROM_ANY)
    for out in runs_of(project, FROM_ANY):
        check_metrics(out)
        of_base, of_run = (json.loads((m / "config.json").read_text())["model"] for m in (trained, out / "model"))
        alone = out.name in {name.removeprefix("pretrain_") for name in PRETRAINING}
        towers = ("image", "image_settings") if alone else ("text", "image", "image_settings", "embed_dim")
        if alone:  # its vector may be that of another stage
            of_run["image"] |= {name: of_base["image"][name] for name in ("stage", "grid")}
        assert {name: of_base[name] for name in towers} == {name: of_run[name] for name in towers}


def test_options_that_no_recipe_sets_do_what_they_say(project: Path) -> None:
    """Beside the main recipe's with another backbone, which takes none of the options of its own."""
    typed = {"head-dropout": "0.2", "image.drop-path": "0.3"}
    options = [word for name, value in typed.items() for word in (f"--model.{name}", value)]
    options += ["--model.image.name", "resnet10t", "--model.image.options", "{}"]
    options += [
        "--train.class-balanced-by",
        "object",
        "--train.beta2",
        "0.9",
        "--train.final-lr",
        "0.5",
        "--train.steps",
        "6",
    ]
    options += ["--data.train-split", "test", "--data.validation-split", "train"]
    done = run([sys.executable, str(REPOSITORY / "recipes" / "train_clip_style.py"), *SMOKE, *options], project)
    assert done.returncode == 0, done.stderr
    complete_run(project)
    (out,) = (project / "runs" / "smoke").iterdir()
    rates = [line["lr"] for line in map(json.loads, (out / "history.jsonl").open()) if "lr" in line]
    assert rates[-1] >= 0.5 * max(rates) > 0, "the rate falls to half of its peak, and no further"
    model = DualTower.from_pretrained(out / "model")
    parts = [type(part).__name__ for part in model.image_tower.modules()]
    assert "DropPath" in parts and any(
        isinstance(part, torch.nn.Dropout) and part.p == 0.2 for part in model.image_head.modules()
    )
    rows, whole = load_items(load_card(REPOSITORY / "data_cards" / "synthetic.md"), "test"), "test: {} of {} rows"
    told = json.loads((out / "config.json").read_text())
    assert (told["model"]["image"]["name"], told["model"]["image"]["options"]) == ("resnet10t", {})
    assert told["data"]["train_split"] == "test" and whole.format(SMOKE_ROWS, len(rows)) in done.stderr
    assert f"synthetic: {SMOKE_ROWS} rows" in done.stderr
    assert f"{SMOKE_ROWS} rows of it" in (out / "report.md").read_text()


def test_a_base_replaces_the_recipe_s_towers_but_not_what_is_typed() -> None:
    from dualtower.launcher import parse_overrides
    from dualtower.models.config import ModelConfig

    sys.path.insert(0, str(REPOSITORY / "recipes"))
    from train_clip_style import config
    from train_reranker import smoke

    assert parse_overrides(config(), ["--base", "mine"]).model == ModelConfig()
    assert parse_overrides(config(), ["--base=mine"]).model == ModelConfig()
    assert parse_overrides(config(), ["--base", "None"]).model == config().model
    assert parse_overrides(config(), ["--base", "mine", "--model.embed-dim", "64"]).model == ModelConfig(embed_dim=64)
    head = smoke().model.reranker
    assert parse_overrides(smoke(), ["--base", "mine"]).model == ModelConfig(reranker=head)


def test_unknown_option_names_the_nearest(project: Path) -> None:
    done = run([sys.executable, str(RECIPES[0]), "--smoke", "--train.bach-size", "3"], project)
    assert done.returncode == 2
    assert "--train.batch-size" in done.stdout + done.stderr


def test_an_error_is_one_line_under_the_launcher(project: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu"]
    done = run([*launcher, str(RECIPES[0]), "--smoke", "--data.card", "missing.md"], project)
    assert done.returncode == 1 and done.stdout == ""
    before, _, said = done.stderr.partition("CardError: ")
    assert "missing.md" in said and len(said.splitlines()) == 1
    assert "Traceback" not in before, "at most Accelerate's own words on what it was not told"


def main_recipe(*args: str) -> RunConfig:
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    from train_clip_style import config

    return parse_overrides(config(), args)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["--model.image.options", "{}"], {}),
        (["--model.image.options={}"], {}),
        (["--model.image.options", '{"layers": [1, 1, 1, 1]}'], {"layers": [1, 1, 1, 1]}),
        (
            ["--model.image.options", '{"layers": [1, 1], "stem_width": 8}', "--model.image.options.stem-width", "4"],
            {"layers": [1, 1], "stem_width": 4},
        ),
        (
            ["--train.lr", "1e-4", "--model.image.options", '{"act_layer": "silu", "nested": {"a": null}}', "--resume"],
            {"act_layer": "silu", "nested": {"a": None}},
        ),
    ],
)
def test_a_mapping_is_replaced_as_a_whole(args: list[str], options: dict) -> None:
    assert main_recipe("--model.image.name", "resnet10t", *args).model.image.options == options


def test_a_mapping_is_changed_key_by_key() -> None:
    options = main_recipe("--model.image.options.stem-chs", "16").model.image.options
    assert options["stem_chs"] == 16 and len(options["blocks"]) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model.image.options", "layers"], "takes a JSON object, not 'layers'"),
        (["--model.image.options", "[1]"], "takes a JSON object, not '[1]'"),
        (["--model.image.options", '{"layers": }'], "Expecting value"),
        (["--model.image.options"], "takes a JSON object, not ''"),
        (["--model.image.option", "{}"], "--model.image.options"),
    ],
)
def test_what_is_no_mapping_is_one_clear_error(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main_recipe(*given)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_budget_on_the_command_line_replaces_the_recipes() -> None:
    from dualtower.training.config import TrainConfig

    base = RunConfig(train=TrainConfig(epochs=30))
    train = parse_overrides(base, ["--train.minutes", "10"]).train
    assert (train.epochs, train.steps, train.minutes) == (None, None, 10)
    assert parse_overrides(base, ["--train.lr", "1e-4"]).train == TrainConfig(epochs=30, lr=1e-4)
