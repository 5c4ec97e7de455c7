"""What a run says while it goes on: a progress bar, trackers, and `history.jsonl` for the report's curves."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from dualtower.config import to_dict, to_json
from dualtower.files import write_text_atomically
from dualtower.training.budget import Budget
from dualtower.training.checkpoint import Position
from dualtower.training.config import RunConfig

__all__ = ["MetricLogger", "read_history"]

_EVERY_SECONDS = 2.0


class MetricLogger:
    """Writes from the main process only.

    A line of ``history.jsonl`` is either ``{"step", "epoch", "seconds", "loss", "lr", "scale", "samples_per_s"}``,
    averaged over the steps since the line before and without ``scale`` where none is trained, or
    ``{"step", ..., "validation": {...}}``.

    Args:
        config: The run.
        accelerator: Its trackers get the same numbers.
        position: Lines of later steps, from before a kill, are dropped.
        budget: What the progress bar counts up to.
        steps_per_epoch: To show fractions of epochs.
    """

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, position: Position, *, budget: Budget, steps_per_epoch: int
    ) -> None:
        self.accelerator, self.budget, self.steps_per_epoch = accelerator, budget, steps_per_epoch
        self.main = accelerator.is_main_process
        self.path = config.out / "history.jsonl"
        self.config = config
        self.first = position
        self._losses: list[Tensor] = []
        self._samples, self._since = 0, time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> MetricLogger:
        if self.main:
            kept = [line for line in read_history(self.path) if line["step"] <= self.first.step]
            write_text_atomically(self.path, "".join(to_json(line) + "\n" for line in kept))
            self._since = time.monotonic()
            self._bar = progress_bar(self.budget, self.first)
        if self.config.train.trackers:
            self.accelerator.init_trackers("dualtower", config=_flat(to_dict(self.config)))
        return self

    def step(self, position: Position, *, loss: Tensor, lr: float, logit_scale: Tensor | None, samples: int) -> None:
        """Note one step of `samples` rows; loss and scale, if trained, stay on the device until a line is due."""
        if not self.main:
            return
        self._losses.append(loss.detach())
        self._samples += samples
        if self._bar is not None:
            self._bar.update(used(self.budget, position) - self._bar.n)
        seconds = time.monotonic() - self._since
        if position.step > 1 and seconds < _EVERY_SECONDS:
            return
        rate = self._samples / seconds
        losses = torch.stack(self._losses).tolist()
        mean = sum(losses) / len(losses)
        scale = None if logit_scale is None else math.exp(logit_scale.item())
        if self._bar is not None:
            epoch = position.step / self.steps_per_epoch
            figures = f"epoch {epoch:.1f}, loss {mean:.3f}, {rate:.0f} samples/s"
            figures += "" if scale is None else f", scale {scale:.1f}"
            self._bar.set_postfix_str(figures, refresh=False)
        values = {"loss": mean, "lr": lr, **({} if scale is None else {"scale": scale})}
        self._write(position, {**values, "samples_per_s": round(rate, 1)})
        self._losses, self._samples, self._since = [], 0, time.monotonic()

    def validation(self, position: Position, figures: dict[str, float]) -> None:
        """Note the figures of one validation."""
        self._write(position, {"validation": figures})
        self._losses, self._samples, self._since = [], 0, time.monotonic()  # its time is no training time

    def _write(self, position: Position, values: dict[str, Any]) -> None:
        if not self.main:
            return
        epoch = round(position.step / self.steps_per_epoch, 3)
        line = {"step": position.step, "epoch": epoch, "seconds": round(position.seconds, 1), **values}
        with self.path.open("a") as stream:
            stream.write(to_json(line) + "\n")
        tracked = {f"validation/{k}": v for k, v in values.get("validation", {}).items()}
        tracked |= {f"train/{k}": v for k, v in values.items() if k != "validation"}
        self.accelerator.log(tracked, step=position.step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def progress_bar(budget: Budget, position: Position) -> tqdm:
    """A bar that counts steps, or minutes where those are the budget; the time left counts validations in."""
    total: float
    if budget.steps is not None:
        total, unit, count = budget.steps, "step", "{n_fmt}/{total_fmt} steps"
    else:
        assert budget.seconds is not None
        total, unit, count = budget.seconds / 60, "min", "{n:.1f}/{total:.4g} min"
    layout = "{l_bar}{bar}| " + count + " [{elapsed}<{remaining} left{postfix}]"
    start = used(budget, position)
    return tqdm(total=total, initial=start, unit=unit, bar_format=layout, smoothing=0, dynamic_ncols=True)


def used(budget: Budget, position: Position) -> float:
    """Steps, or minutes where those are the budget, so far; never more than the budget has."""
    if budget.seconds is not None:
        return min(position.seconds, budget.seconds) / 60
    return position.step


def read_history(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``history.jsonl``; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Trackers take flat scalars."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
