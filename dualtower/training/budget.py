"""How long a run may take, in epochs, steps or minutes, and how far it has come: a number from 0 to 1."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from dualtower.errors import ConfigError
from dualtower.training.config import TrainConfig

__all__ = ["Budget", "Clock", "learning_rate_factor"]


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
