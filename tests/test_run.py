"""A run of several processes: what was trained is saved before it is measured, and measured by all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import RECIPE, SMALL_RUN, SMALL_SPLITS

from dualtower import DualTower
from dualtower.data.cards import load_card
from dualtower.data.loading import load_items
from dualtower.evaluation import evaluate
from dualtower.training.config import SMOKE_ROWS

REPOSITORY = Path(__file__).parent.parent
SLOW = Path(__file__).with_name("distributed_slow_run.py")
OWN_FOLDERS = Path(__file__).with_name("distributed_own_folders.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FEW_ROWS = ["--data.train-split", "validation"]
pytestmark = pytest.mark.slow


def start(script: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, str(script), *arguments, *SMALL_RUN],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0][-4000:]
        time.sleep(0.01)


def finish(script: Path, *arguments: str) -> str:
    process = start(script, *arguments)
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def slowly_measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose measurement takes one process 20 s, of processes that wait 15 s for each other."""
    out = tmp_path_factory.mktemp("runs") / "slow"
    output = finish(SLOW, "15", "20", *FEW_ROWS, "--out", str(out))
    assert "2 process(es)" in output
    return out


def test_a_measurement_longer_than_the_processes_wait_for_each_other(slowly_measured: Path) -> None:
    DualTower.from_pretrained(slowly_measured / "model")
    metrics = json.loads((slowly_measured / "metrics.json").read_text())
    assert metrics["protocol"]["rows"] == SMOKE_ROWS
    readme = (slowly_measured / "model" / "README.md").read_text()
    assert "## Results" in readme and "| recall@10" in readme and "None yet" not in readme


def test_two_processes_report_what_one_measures(slowly_measured: Path) -> None:
    torch.set_num_threads(1)
    model = DualTower.from_pretrained(slowly_measured / "model")
    test = load_items(load_card(REPOSITORY / "data_cards" / "synthetic.md"), "test").sample(SMOKE_ROWS)
    alone = evaluate(model, test, bootstrap=20).report.to_dict()
    together = json.loads((slowly_measured / "metrics.json").read_text())
    for direction in ("text_to_image", "image_to_text", "image_to_image"):
        assert together[direction] == alone[direction]


def test_a_main_process_that_dies_while_measuring_leaves_the_model(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = start(SLOW, "60", "600", *FEW_ROWS, "--out", str(out))
    wait_for(out / "model" / "config.json", process)
    os.kill(int((tmp_path / "rank0.pid").read_text()), signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0, output[-4000:]
    assert not (out / "metrics.json").exists(), "killed too late to test anything"
    model = DualTower.from_pretrained(out / "model")
    assert model.encode_text(["blue mug"]).shape == (1, model.config.embed_dim)
    assert "None yet" in (out / "model" / "README.md").read_text()


LONG = [*SMALL_SPLITS, "--train.steps", "12", "--train.precision", "fp32"]
LONG += ["--train.checkpoint-steps", "4", "--train.ema", "0.9"]


def test_only_the_main_process_needs_the_run_s_folder(tmp_path: Path) -> None:
    whole, root = tmp_path / "whole", tmp_path / "apart"
    finish(RECIPE, *LONG, "--out", str(whole))
    process = start(OWN_FOLDERS, str(root), *LONG)
    wait_for(root / "machine0" / "checkpoints" / "step_00000004.pt", process)
    for pid in root.glob("rank*.pid"):
        os.kill(int(pid.read_text()), signal.SIGKILL)
    process.communicate(timeout=120)
    assert not (root / "machine0" / "model").exists(), "killed too late to test anything"
    output = finish(OWN_FOLDERS, str(root), *LONG, "--resume")
    assert "resuming from" in output
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, root / "machine0")]
    assert weights[0] == weights[1]
    assert not (root / "machine1").exists()


def test_another_number_of_processes_is_refused(slowly_measured: Path) -> None:
    """Batches of two processes are not those of one: the resumed run would not be the one that was begun."""
    config = (slowly_measured / "config.json").read_text()
    done = subprocess.run(
        [sys.executable, str(RECIPE), *SMALL_RUN, *FEW_ROWS, "--out", str(slowly_measured), "--resume"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "processes: 2 then, 1 now" in done.stderr and "--nproc_per_node 2" in done.stderr
    assert (slowly_measured / "config.json").read_text() == config
