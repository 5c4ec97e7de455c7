"""A run that is killed, stopped or starved of disk goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
RECIPE = REPOSITORY / "recipes" / "train_clip_style.py"
STEPS = 14
OPTIONS = [
    "--smoke",
    "--train.steps",
    str(STEPS),
    "--train.checkpoint-steps",
    "3",
    "--train.precision",
    "fp32",  # two runs that each measure for themselves might choose differently
    "--train.ema",
    "0.9",
    "--train.trackers",
    "--evaluation.bootstrap",
    "20",
]  # 14 steps of 32 rows end in the first epoch: a checkpoint is always in the middle of one


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, str(RECIPE), *OPTIONS, "--out", str(out), *more]


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


def wait_for_checkpoint(process: subprocess.Popen, out: Path, step: int) -> None:
    """Return as soon as the checkpoint of that step, or a later one, is complete."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        done = [int(p.stem.removeprefix("step_")) for p in (out / "checkpoints").glob("step_*.pt")]
        if done and max(done) >= step:
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
        assert not (out / "metrics.json").exists(), "killed too late to test anything"
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
    process = start(uninterrupted, "--resume", "--train.lr", "0.5")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "train.lr" in output
