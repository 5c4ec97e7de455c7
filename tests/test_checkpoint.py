"""A checkpoint is complete or absent, and fits its config or is refused."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualtower.config import to_dict
from dualtower.errors import CheckpointError
from dualtower.training.checkpoint import (
    Checkpoint,
    Position,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from dualtower.training.config import RunConfig, TrainConfig

CONFIG = RunConfig(train=TrainConfig(steps=10))


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        config=to_dict(CONFIG),
        position=Position(step=step, seconds=3.5, best=0.25),
        model={"weight": torch.arange(4.0)},
        optimizer={"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]},
        rng=[{"cpu": torch.get_rng_state()}],
        loader=[{"epoch": 1, "batch": 2}],
    )


def test_round_trip(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(7), tmp_path, max_checkpoints=2)
    loaded = load_checkpoint(path, CONFIG)
    assert loaded.position == checkpoint(7).position
    assert torch.equal(loaded.model["weight"], torch.arange(4.0))
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], torch.ones(4))
    assert torch.equal(loaded.rng[0]["cpu"], checkpoint(7).rng[0]["cpu"])
    assert loaded.loader == [{"epoch": 1, "batch": 2}]


def test_an_older_checkpoint_kept_the_place_in_the_data_with_its_position(tmp_path: Path) -> None:
    path = save_checkpoint(replace(checkpoint(7), rng=checkpoint(7).rng * 2), tmp_path, max_checkpoints=2)
    parts = torch.load(path, weights_only=True)
    for name in ("loader", "objective", "objective_ema"):
        del parts[name]
    parts["position"] |= {"epoch": 3, "batch": 5}
    torch.save(parts, path)
    loaded = load_checkpoint(path, CONFIG)
    assert loaded.position == checkpoint(7).position
    assert loaded.loader == [{"epoch": 3, "batch": 5}] * 2
    assert loaded.objective == loaded.objective_ema == {}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 900, 1000):
        save_checkpoint(checkpoint(step), tmp_path, max_checkpoints=2)
    (tmp_path / "best.pt").write_bytes(b"other")
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000900.pt", "step_00001000.pt"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00001000.pt"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(7), tmp_path, max_checkpoints=2)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"step_00000007\.pt is not a complete checkpoint.*delete it"):
        load_checkpoint(path, CONFIG)


def test_another_config_is_refused_by_name(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(7), tmp_path, max_checkpoints=2)
    other = replace(CONFIG, train=replace(CONFIG.train, lr=0.5))
    with pytest.raises(CheckpointError, match=r"train\.lr: 0\.001 != 0\.5"):
        load_checkpoint(path, other)


def test_what_changes_no_number_may_change(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(7), tmp_path, max_checkpoints=2)
    moved = replace(
        CONFIG,
        out=Path("elsewhere"),
        resume=True,
        data=replace(CONFIG.data, workers=0, source="moved"),
        train=replace(CONFIG.train, trackers=(), checkpoint_steps=3),
    )
    assert load_checkpoint(path, moved).position.step == 7


def test_the_budget_may_change(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(7), tmp_path, max_checkpoints=2)
    more = replace(CONFIG, train=replace(CONFIG.train, steps=None, epochs=12.0, patience=3))
    assert load_checkpoint(path, more).position.step == 7


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"processes": "1"}, "launch 2 again"),
        ({"tokenizer": "101 tokens"}, "--base .*model --out ANOTHER"),
        ({"split train": "11 rows"}, "--base .*model --out ANOTHER"),
        ({"images of train": "b"}, "restore what has changed"),
    ],
)
def test_other_inputs_are_refused_by_name(changed: dict[str, str], advice: str, tmp_path: Path) -> None:
    inputs = {"processes": "2", "tokenizer": "100 tokens", "split train": "10 rows", "images of train": "a"}
    path = save_checkpoint(replace(checkpoint(7), inputs=inputs), tmp_path, max_checkpoints=2)
    assert load_checkpoint(path, CONFIG, inputs).position.step == 7
    ((name, now),) = changed.items()
    with pytest.raises(CheckpointError, match=f"{name}: {inputs[name]} then, {now} now.*{advice}"):
        load_checkpoint(path, CONFIG, inputs | changed)


def test_a_run_that_skips_broken_images_goes_on_with_changed_ones(tmp_path: Path) -> None:
    inputs = {"split train": "10 rows", "images of train": "a"}
    path = save_checkpoint(replace(checkpoint(7), inputs=inputs), tmp_path, max_checkpoints=2)
    skipping = replace(CONFIG, data=replace(CONFIG.data, on_error="skip"))
    assert load_checkpoint(path, skipping, inputs | {"images of train": "b"}).position.step == 7
    with pytest.raises(CheckpointError, match="split train"):
        load_checkpoint(path, skipping, {"split train": "11 rows", "images of train": "b"})


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "step_00000001.pt"
    torch.save({"model": Bomb()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path, CONFIG)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 128 kB, where the machine lets us mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", mount], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_full_disk_loses_nothing_already_written(small_disk: Path) -> None:
    first = save_checkpoint(checkpoint(1), small_disk, max_checkpoints=1)
    too_large = replace(checkpoint(2), model={"weight": torch.zeros(100_000)})
    with pytest.raises(CheckpointError, match=r"cannot write .*step_00000002\.pt.*make room"):
        save_checkpoint(too_large, small_disk, max_checkpoints=1)
    assert [p.name for p in small_disk.iterdir()] == [first.name]
    assert load_checkpoint(first, CONFIG).position.step == 1
