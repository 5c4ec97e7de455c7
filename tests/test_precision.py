"""Each tower computes in the precision that is fastest on the machine; a resumed run keeps what it began with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import factories
import pytest
import torch
from accelerate import Accelerator
from processes import RECIPE, SMALL_SPLITS, torchrun
from test_resume import OPTIONS, STEPS, assert_same_end, environment, latest_checkpoint, wait_for_checkpoint
from test_trainer import items, run_config

from dualtower import RunConfig
from dualtower.config import from_dict, to_dict
from dualtower.errors import ConfigError
from dualtower.models.precision import TowerPrecision, computed, measure_precision, preferred
from dualtower.training.building import build_trainer
from dualtower.training.precision import autocast_precision, with_tower_precision
from dualtower.training.run import run
from dualtower.types import Features

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"exact": 1.0, "rounded": 0.5}, "rounded"),
        ({"exact": 1.0, "rounded": 0.95}, "exact"),
        ({"exact": 1.0, "rounded": 2.0}, "exact"),
        ({"exact": 1.0, "other order": 0.8, "rounded": 0.75, "rounded, other order": 0.74}, "other order"),
    ],
)
def test_less_exact_only_where_it_is_clearly_faster(seconds: dict[str, float], chosen: str) -> None:
    assert preferred(seconds) == chosen


class Clock:
    """Time that passes as it is told: bfloat16 is quick in convolutions and slow in matrices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, image: Callable[[str, bool], float], bf16_text: float) -> None:
        self.now, self.rows, self.grad = 0.0, set[int](), set[bool]()

        def timed(tower: torch.nn.Module, precision: str, *inputs: torch.Tensor) -> Features:
            seen = inputs[0].ndim == 4
            last = seen and tower.memory_format == torch.channels_last
            slow = image(precision, last) if seen else (bf16_text if precision == "bf16" else 1.0)
            self.now += slow * len(inputs[0])
            self.rows.add(len(inputs[0]))
            self.grad.add(torch.is_grad_enabled())
            return computed(tower, precision, *inputs)  # type: ignore[arg-type]

        monkeypatch.setattr("dualtower.models.precision.computed", timed)

    def __call__(self) -> float:
        return self.now


def tokens(rows: int = 32) -> dict[str, torch.Tensor]:
    return dict(factories.model().collator().tokens((factories.TITLES * 2)[:rows]))


def test_each_tower_is_measured_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda precision, last: (0.5 if precision == "bf16" else 1.0) * (0.5 if last else 1), 3)
    chosen = measure_precision(factories.model(), tokens(), learns=(True, True), clock=clock, seconds=1e6)
    assert chosen == TowerPrecision(text="fp32", image="bf16", channels_last=True)
    clock = Clock(monkeypatch, lambda precision, last: (4 if precision == "bf16" else 1.0) * (2 if last else 1), 0.1)
    chosen = measure_precision(factories.model(), tokens(), clock=clock, seconds=1e6)
    assert chosen == TowerPrecision(text="bf16", image="fp32", channels_last=False)
    assert clock.grad == {False} and max(clock.rows) == 32


def test_a_slow_model_is_measured_on_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda *_: 1.0, 1.0)
    measure_precision(factories.model(), tokens(), clock=clock, seconds=2.0)
    assert clock.rows == {2}


def test_a_memory_order_that_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, lambda precision, last: 1.0 if last else 9.0, 1.0)
    model = factories.model(image="resnet")
    model.config = replace(model.config, image=replace(model.config.image, channels_last=False))
    model.image_tower.order_memory(channels_last=False)
    assert measure_precision(model, tokens(), learns=(True, True), clock=clock).channels_last is False


def test_measuring_leaves_everything_as_it_was() -> None:
    model, threads = factories.model().train(), torch.get_num_threads()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    chosen = measure_precision(model, tokens(), learns=(True, True), seconds=0.1)
    assert chosen.text in ("fp32", "bf16") and chosen.image in ("fp32", "bf16")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("text", list(factories.TEXT))
@pytest.mark.parametrize("image", list(factories.IMAGE))
def test_any_tower_computes_in_bf16_under_a_float32_head(text: str, image: str) -> None:
    model = factories.model(text, image)
    batch = model.collator()([items()[i] for i in range(8)])
    exact = model(batch)
    model.compute_in(TowerPrecision(text="bf16", image="bf16", channels_last=False))
    rounded = model(batch)
    for a, b in ((exact.image, rounded.image), (exact.text, rounded.text)):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)
    assert not torch.equal(exact.image, rounded.image)
    assert text == "bow" or not torch.equal(exact.text, rounded.text), "a bag of words only adds, in float32"
    assert rounded.image_features.tokens.dtype == torch.float32
    model.compute_in(TowerPrecision())
    with torch.autocast("cpu", torch.bfloat16):  # a precision of its own wins over the one around it
        again = model.image_features(batch.pixels)
    torch.testing.assert_close(again.pooled, exact.image_features.pooled, atol=1e-5, rtol=1e-5)


def test_it_trains_in_mixed_precision(tmp_path: Path) -> None:
    model = factories.model()
    config = run_config(tmp_path, model, precision="auto", tower_precision=TowerPrecision(image="bf16"))
    accelerator = Accelerator(cpu=True)
    config = with_tower_precision(config, model, items(), accelerator)
    made = build_trainer(config, model, items(), accelerator=accelerator)
    assert made.unwrapped.precision == TowerPrecision(image="bf16")
    assert made.fit().ended == "budget"
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())


def test_explicit_precision_is_not_measured(tmp_path: Path) -> None:
    model = factories.model()
    for precision, name in (("fp32", "no"), ("bf16", "bf16")):
        config = run_config(tmp_path, model, precision=precision)
        assert autocast_precision(config.train) == name
        assert with_tower_precision(config, model, items(), Accelerator(cpu=True)) is config
        assert model.precision is None


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is for accelerators")
def test_fp16_without_a_gpu_is_refused_and_not_silently_float32(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp16 needs a GPU.*auto, bf16 or fp32"):
        run(run_config(tmp_path, factories.model(), precision="fp16"))
    with pytest.raises(ConfigError, match=r"train\.precision is fp32; leave one of them out"):
        run_config(tmp_path, factories.model(), precision="fp32", tower_precision=TowerPrecision(image="bf16"))


def test_a_choice_that_the_config_holds_is_kept_on_every_device(tmp_path: Path) -> None:
    """A config from a processor's run, taken to a GPU, says how the towers compute there too."""
    model, held = factories.model(), TowerPrecision(text="fp32", image="bf16")
    config = run_config(tmp_path, model, precision="auto", tower_precision=held)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), is_main_process=True)
    assert with_tower_precision(config, model, items(), on_gpu) == config
    assert model.precision == held
    fresh = run_config(tmp_path, model, precision="auto")
    assert with_tower_precision(fresh, factories.model(), items(), on_gpu) is fresh


def test_the_choice_is_in_the_config_and_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    model = factories.model()
    measured = with_tower_precision(
        run_config(tmp_path, model, precision="auto"), model, items(), Accelerator(cpu=True)
    )
    assert measured.train.tower_precision == model.precision is not None
    other = TowerPrecision(text="bf16", image="fp32", channels_last=False)
    saved = replace(measured, train=replace(measured.train, tower_precision=other))
    tmp_path.joinpath("config.json").write_text(json.dumps(to_dict(saved)))
    assert from_dict(RunConfig, to_dict(saved)).train == saved.train
    resumed = replace(run_config(tmp_path, model, precision="auto"), resume=True)
    again = with_tower_precision(resumed, factories.model(), items(), Accelerator(cpu=True))
    assert again.train.tower_precision == other


@pytest.mark.slow
def test_a_killed_run_goes_on_in_its_precision_bit_for_bit(tmp_path: Path) -> None:
    recipe = tmp_path / "bf16_towers.py"
    recipe.write_text(
        f"""
import sys
from dataclasses import replace
sys.path.insert(0, {str(RECIPE.parent)!r})
from train_clip_style import config as plain
from dualtower import launch
from dualtower.models.precision import TowerPrecision

def config():
    run = plain()
    chosen = TowerPrecision(text="bf16", image="bf16", channels_last=False)
    return replace(run, train=replace(run.train, tower_precision=chosen))

if __name__ == "__main__":
    launch(config)
"""
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [*OPTIONS, *SMALL_SPLITS, "--train.precision", "auto", "--out"]
    subprocess.run([sys.executable, recipe, *options, whole], env=environment(), check=True, capture_output=True)
    process = subprocess.Popen([sys.executable, recipe, *options, killed], env=environment(), stderr=subprocess.DEVNULL)
    wait_for_checkpoint(process, killed, 3)
    process.kill()
    process.communicate()
    assert latest_checkpoint(killed) < STEPS, "killed too late to test anything"
    resumed = [sys.executable, RECIPE, *options, killed, "--resume"]  # which by itself would measure
    done = subprocess.run(resumed, env=environment(), check=True, capture_output=True, text=True)
    assert "text bf16, image bf16, contiguous" in done.stderr and "measured" not in done.stderr
    assert_same_end(whole, killed)


def test_all_ranks_take_the_first_ones_choice(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        """
import sys
import torch
import factories
from processes import accelerator
from test_trainer import items, run_config
from pathlib import Path
from dualtower.models.precision import TowerPrecision
import dualtower.training.precision as room

with accelerator() as ranks:
    rank = ranks.process_index
    assert ranks.num_processes == 2
    measured = TowerPrecision(text="bf16" if rank == 0 else "fp32", channels_last=rank == 1)
    room.measure_precision = lambda *a, **k: measured
    model = factories.model()
    config = run_config(Path(sys.argv[1]), model, precision="auto")
    config = room.with_tower_precision(config, model, items(), ranks)
assert config.train.tower_precision == model.precision == TowerPrecision(text="bf16", channels_last=False)
"""
    )
    torchrun(script, tmp_path)
