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

from dualtower import DualTower
from dualtower.data.cards import load_card
from dualtower.data.loading import load_products
from dualtower.evaluation import evaluate

REPOSITORY = Path(__file__).parent.parent
SLOW = Path(__file__).with_name("distributed_slow_run.py")
OPTIONS = ["--smoke", "--train.trackers", "--evaluation.bootstrap", "20"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(out: Path, script: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, str(script), *arguments, *OPTIONS, "--out", str(out)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def slowly_measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose measurement takes one process 30 s, of processes that wait 15 s for each other."""
    out = tmp_path_factory.mktemp("runs") / "slow"
    process = start(out, SLOW, "15", "30")
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output[-4000:]
    assert "2 process(es)" in output
    return out


def test_a_measurement_longer_than_the_processes_wait_for_each_other(slowly_measured: Path) -> None:
    DualTower.from_pretrained(slowly_measured / "model")
    metrics = json.loads((slowly_measured / "metrics.json").read_text())
    assert metrics["protocol"]["rows"] == 576
    readme = (slowly_measured / "model" / "README.md").read_text()
    assert "## Results" in readme and "| recall@10" in readme and "None yet" not in readme


def test_two_processes_report_what_one_measures(slowly_measured: Path) -> None:
    torch.set_num_threads(1)
    model = DualTower.from_pretrained(slowly_measured / "model")
    test = load_products(load_card(REPOSITORY / "data_cards" / "drawn.md"), "test")
    alone = evaluate(model, test, bootstrap=20).report.to_dict()
    together = json.loads((slowly_measured / "metrics.json").read_text())
    for direction in ("text_to_image", "image_to_text", "image_to_image"):
        assert together[direction] == alone[direction]


def test_a_main_process_that_dies_while_measuring_leaves_the_model(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = start(out, SLOW, "60", "600")
    end = time.monotonic() + 300
    while not (out / "model" / "config.json").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0][-4000:]
        time.sleep(0.05)
    os.kill(int((tmp_path / "rank0.pid").read_text()), signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0, output[-4000:]
    assert not (out / "metrics.json").exists(), "killed too late to test anything"
    model = DualTower.from_pretrained(out / "model")
    assert model.encode_text(["blue mug"]).shape == (1, model.config.embed_dim)
    assert "None yet" in (out / "model" / "README.md").read_text()
