"""Gradients that are not finite: never applied, never saved, on all ranks alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from accelerate import Accelerator
from processes import torchrun
from test_trainer import items, run_config, trainer

from dualtower import DualTower
from dualtower.errors import NonFiniteLoss
from dualtower.training.building import build_trainer
from dualtower.training.metric_logger import read_history
from dualtower.training.trainer import Trainer


def poison_gradient(made: Trainer, value: float, *, at_step: int) -> None:
    """From that step on, one weight's gradient holds `value`; the loss stays as it is."""

    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        if made.position.step < at_step:
            return gradient
        ruined = gradient.clone()
        ruined.view(-1)[0] = value
        return ruined

    next(made.unwrapped.image_head.parameters()).register_hook(poisoned)


def weights(model: DualTower) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("clip_norm", [1.0, None])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(clip_norm: float | None, value: float, tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=10, checkpoint_steps=2, clip_norm=clip_norm, ema=0.5)
    poison_gradient(made, value, at_step=5)
    with pytest.raises(
        NonFiniteLoss, match=r"gradient norm became (nan|inf) at step 5; .*checkpoint is .*step_00000004\.pt"
    ):
        made.fit()
    assert all(torch.isfinite(w).all() for w in made.unwrapped.state_dict().values())
    assert made.position.step == 5
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pt"))
    assert names == ["step_00000002.pt", "step_00000004.pt"]
    good = torch.load(tmp_path / "checkpoints" / names[-1], weights_only=True)
    assert all(torch.isfinite(v).all() for v in good["model"].values())


def test_weights_that_overflow_in_a_step_are_not_saved(tmp_path: Path) -> None:
    """Loss and gradient are finite, the step itself is not: what is on disk stays the last good state."""
    made = trainer(tmp_path, steps=10, checkpoint_steps=1, validate=lambda m: {"score": 1.0}, optimizer="sgd")
    step = made._step

    def leap(group: Any, progress: float) -> None:
        step(group, progress)
        if made.position.step == 3:
            with torch.no_grad():
                next(made.unwrapped.image_head.parameters()).fill_(torch.inf)

    made._step = leap  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLoss, match=r"weights became .* at step 3; .*checkpoint is .*step_00000002\.pt"):
        made.fit()
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        assert all(torch.isfinite(v).all() for v in torch.load(path, weights_only=True)["model"].values()), path


@pytest.mark.parametrize("ruined", ["gradient", "loss"])
def test_all_ranks_stop_alike(ruined: str, tmp_path: Path) -> None:
    """Only one of two ranks computes what is not finite; both raise before the step."""
    script = Path(__file__).parent / "distributed_finite.py"
    torchrun(script, tmp_path, ruined)
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [t["world_size"] for t in told] == [2, 2]
    for rank in told:
        assert "at step 3" in rank["error"] and rank["finite"] and rank["step"] == 3, told


class TestGradScaler:
    """The scaler of fp16 (a real one, on the CPU): an overflow is a skipped step, and only that."""

    def made(self, out: Path, **train: Any) -> Trainer:
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        model = factories.model()
        config = run_config(out, model, **train)
        return build_trainer(config, model, items(), accelerator=accelerator)

    @pytest.mark.parametrize("clip_norm", [1.0, None])
    def test_an_overflow_skips_the_step(self, clip_norm: float | None, tmp_path: Path) -> None:
        made = self.made(tmp_path, steps=4, clip_norm=clip_norm, ema=0.5)
        poison_gradient(made, torch.inf, at_step=1)
        groups = made._groups()
        made._step(next(groups), 0.1)
        before, average = weights(made.unwrapped), weights(made.ema.module.model)
        made._step(next(groups), 0.2)
        assert made.position.step == 2 and made.position.skipped == 1 and made.loader_state["batch"] == 2
        assert all(torch.equal(w, before[n]) for n, w in made.unwrapped.named_parameters())
        assert all(torch.equal(w, average[n]) for n, w in made.ema.module.model.named_parameters())
        assert made.accelerator.scaler.get_scale() == 2.0**15

    def test_skips_without_end_are_an_error(self, tmp_path: Path) -> None:
        made = self.made(tmp_path, steps=500)
        poison_gradient(made, torch.inf, at_step=2)
        with pytest.raises(NonFiniteLoss, match=r"in a row, all of them skipped"):
            made.fit()
        assert 20 < made.position.skipped < 60
        assert all(torch.isfinite(w).all() for w in made.unwrapped.state_dict().values())

    def test_skipped_steps_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        made = self.made(tmp_path, steps=3)
        poison_gradient(made, torch.inf, at_step=2)
        with caplog.at_level("WARNING"):
            made.fit()
        assert "skipped" in caplog.text
        assert read_history(tmp_path / "history.jsonl")

    def test_a_loss_that_is_not_finite_stops_at_once(self, tmp_path: Path) -> None:
        made = self.made(tmp_path, steps=10)
        loss = made.objective.loss

        def broken(outputs: Any, batch: Any) -> torch.Tensor:
            value = loss(outputs, batch)
            return value * torch.inf if made.position.step == 2 else value

        made.objective.loss = broken  # type: ignore[method-assign]
        with pytest.raises(NonFiniteLoss, match=r"loss became inf at step 2"):
            made.fit()
