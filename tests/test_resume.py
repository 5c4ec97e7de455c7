"""A run that is killed, stopped or starved of disk goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import factories
import pytest
from processes import RECIPE, SMALL_RUN, SMALL_SPLITS

REPOSITORY = Path(__file__).parent.parent
STEPS = 17
OPTIONS = [
    *SMALL_RUN,
    "--train.steps",
    str(STEPS),
    "--train.checkpoint-steps",
    "3",
    "--train.precision",
    "fp32",  # two runs that each measure for themselves might choose differently
    "--train.ema",
    "0.9",
]  # 17 steps of 32 rows end in the first epoch of 576: a checkpoint is always in the middle of one


pytestmark = pytest.mark.slow


def command(out: Path, *more: str) -> list[str]:
    splits = () if "--data.card" in more else SMALL_SPLITS
    return [sys.executable, str(RECIPE), *OPTIONS, *splits, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def start(out: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(out, *more), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(out: Path, *more: str) -> str:
    process = start(out, *more)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def latest_checkpoint(out: Path) -> int:
    """The step of the last checkpoint, or 0."""
    return max((int(p.stem.removeprefix("step_")) for p in (out / "checkpoints").glob("step_*.pt")), default=0)


def wait_for_checkpoint(process: subprocess.Popen, out: Path, step: int) -> None:
    """Return as soon as the checkpoint of that step, or a later one, is complete."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if latest_checkpoint(out) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step}: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(out)
    return out


def assert_same_end(a: Path, b: Path) -> None:
    assert (a / "model" / "model.safetensors").read_bytes() == (b / "model" / "model.safetensors").read_bytes()
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (a, b)]
    assert metrics[0]["text_to_image"] == metrics[1]["text_to_image"]
    assert metrics[0]["image_to_text"] == metrics[1]["image_to_text"]


def test_run_folder_is_complete(uninterrupted: Path) -> None:
    names = {p.name for p in uninterrupted.iterdir()}
    assert {"model", "checkpoints", "config.json", "metrics.json", "report.md", "history.jsonl"} <= names
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert set(metrics["text_to_image"]["recall@10"]) >= {"value", "low", "high"}
    assert metrics["protocol"]


def test_killed_twice_and_resumed_is_bit_identical(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    for kill_after, more in ((3, []), (9, ["--resume"])):
        process = start(out, *more)
        wait_for_checkpoint(process, out, kill_after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert latest_checkpoint(out) < STEPS, "killed too late to test anything"
    finish(out, "--resume")
    assert_same_end(uninterrupted, out)


def test_interrupt_saves_and_says_how_to_go_on(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "interrupted"
    process = start(out)
    wait_for_checkpoint(process, out, 3)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "--resume" in output and "Traceback" not in output
    finish(out, "--resume")
    assert_same_end(uninterrupted, out)


def test_finished_run_is_neither_overwritten_nor_lost(uninterrupted: Path) -> None:
    before = (uninterrupted / "metrics.json").read_text()
    process = start(uninterrupted, "--no-overwrite")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "already holds a run" in output and "--resume" in output
    assert (uninterrupted / "metrics.json").read_text() == before


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    process = start(tmp_path / "nothing", "--resume")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "nothing to resume" in output


def test_resume_with_another_config_is_refused(uninterrupted: Path) -> None:
    before = (uninterrupted / "config.json").read_text()
    process = start(uninterrupted, "--resume", "--train.lr", "0.5")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "train.lr" in output
    assert (uninterrupted / "config.json").read_text() == before, "a refused config is not the run's"


def test_a_larger_budget_extends_a_finished_run(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "extended"
    shutil.copytree(uninterrupted, out)
    output = finish(out, "--resume", "--train.steps", str(2 * STEPS))
    assert f"steps {STEPS} -> {2 * STEPS}" in output and "50 % of it are used up" in output
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == latest_checkpoint(out) == 2 * STEPS
    assert json.loads((out / "config.json").read_text())["train"]["steps"] == 2 * STEPS
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (uninterrupted, out)]
    assert weights[0] != weights[1]


def catalog(folder: Path, rows: int) -> Path:
    """A card over images on disk and a table of `rows` of them."""
    folder.mkdir(exist_ok=True)
    lines = ["id,title,image,split"]
    for i in range(rows):
        (folder / f"{i}.png").write_bytes(factories.png(factories.photo(i)))
        split = "train" if i % 4 < 2 else ("validation", "test")[i % 2]
        lines.append(f"{i},{factories.TITLES[i % 36]} {'abcdefghij'[i % 10] * 3},{i}.png,{split}")
    for name in ("train", "validation", "test"):
        chosen = [lines[0], *(line for line in lines[1:] if line.endswith(name))]
        (folder / f"{name}.csv").write_text("\n".join(chosen) + "\n")
    card = folder.with_suffix(".md")
    card.write_text(
        f"---\nname: mugs\ntitle: Mugs\nsource: {{path: {folder.name}}}\nlicense: none\nlanguages: [en]\n"
        "columns: {id: id, product_id: id, text: title, image: image}\n"
        "splits: {named: {train: train, validation: validation, test: test}}\n---\n"
    )
    return card


def test_a_grown_catalog_is_refused_and_the_vocabulary_kept(tmp_path: Path) -> None:
    card, out = catalog(tmp_path / "mugs", 160), tmp_path / "run"
    options = ["--data.card", str(card), "--data.workers", "0"]
    finish(out, *options)
    vocabulary = (out / "tokenizer" / "tokenizer.json").read_bytes()
    saved = json.loads((out / "model" / "tokenizer" / "tokenizer.json").read_text())
    assert saved["model"] == json.loads(vocabulary)["model"]

    catalog(tmp_path / "mugs", 200)
    process = start(out, *options, "--resume", "--train.steps", str(2 * STEPS))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "split train: 80 rows" in output and "100 rows" in output and f"--base {out / 'model'}" in output
    assert "tokenizer:" not in output, "the vocabulary is the run's own"
    assert (out / "tokenizer" / "tokenizer.json").read_bytes() == vocabulary

    catalog(tmp_path / "mugs", 160)
    finish(out, *options, "--resume", "--train.steps", str(STEPS + 2))
