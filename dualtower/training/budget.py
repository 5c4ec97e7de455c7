"""How long a run may take, in epochs, steps or minutes, and how far it has come: a number from 0 to 1."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualtower.errors import ConfigError
from dualtower.training.config import TrainConfig

__all__ = ["BUDGET", "Budget", "Clock", "learning_rate_factor", "say_budget"]

logger = logging.getLogger(__name__)

BUDGET = ("epochs", "steps", "minutes", "patience")
"""What of a `TrainConfig` says how long a run goes on."""


@dataclass(frozen=True)
class Budget:
    """Exactly one of `steps` and `seconds` is set."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> Budget:
        """Read the budget of a config.

        Raises:
            ConfigError: None of epochs, steps and minutes is given.
        """
        if config.minutes is not None:
            return cls(seconds=config.minutes * 60)
        if config.steps is not None:
            return cls(steps=config.steps)
        if config.epochs is not None:
            return cls(steps=max(1, round(config.epochs * steps_per_epoch)))
        raise ConfigError("no budget; give one of --train.epochs, --train.steps and --train.minutes")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used up, 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)


class Clock:
    """Seconds of training so far, counting those before a stop."""

    def __init__(self, before: float = 0.0) -> None:
        self._begin = time.monotonic() - before

    def seconds(self) -> float:
        """Seconds since the run began, less the time that it lay stopped."""
        return time.monotonic() - self._begin


def say_budget(before: Mapping[str, Any], now: TrainConfig, used: float) -> None:
    """Log what a resumed run makes of another budget than it began with.

    The learning rate follows the schedule of the whole new budget: extending a finished run of 60 epochs to 120 raises
    it again, to what it is in the middle of 120 epochs.

    Args:
        before: The `TrainConfig` of the checkpoint, as plain values.
        now: That of the run.
        used: Share of the budget that is used up.
    """
    pairs = {name: (before[name], getattr(now, name)) for name in BUDGET}
    changed = [f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new]
    if changed:
        logger.info(
            "another budget (%s): %.0f %% of it are used up, and the learning rate goes on from there",
            ", ".join(changed),
            100 * used,
        )
    if used >= 1:
        logger.info("the budget is used up; a larger one, such as --train.epochs 120, would extend the run")


def learning_rate_factor(progress: float, *, warmup: float, final: float) -> float:
    """Linear warm-up, then half a cosine down to `final` (Loshchilov & Hutter 2017, without restarts).

    Args:
        progress: Share of the budget used, 0 to 1.
        warmup: Share of the budget spent warming up.
        final: Factor at the end.
    """
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    done = (progress - warmup) / max(1e-9, 1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
