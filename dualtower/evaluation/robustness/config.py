"""What is done to the query images, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from dualtower.errors import ConfigError, UnknownName
from dualtower.evaluation.robustness.corruptions import CORRUPTIONS, STRENGTHS

__all__ = ["RobustnessConfig"]


@dataclass(frozen=True)
class RobustnessConfig:
    """What is done to the query images, and how it is measured."""

    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """Corruptions of the query image: noise, blur, brightness, jpeg, occlusion. None of them measures the attack
    alone."""
    strengths: tuple[int, ...] = STRENGTHS
    """Strengths of each corruption, from 1 to 5."""
    epsilons: tuple[float, ...] = (1, 2, 4)
    """How far the attack may move each pixel value, in 255ths. None of them measures the corruptions alone."""
    steps: int = 10
    """Gradient steps of the attack."""
    step_size: float | None = None
    """How far a step of the attack moves each pixel value, in 255ths; None is a quarter of epsilon."""
    rows: int | None = 1000
    """Most rows whose images are queries, drawn with the seed; None is all of them. All rows are searched."""
    ks: tuple[int, ...] = (1, 10)
    """Cut-offs K of recall@K and hit@K."""
    bootstrap: int = 1000
    """Resamples behind the intervals."""
    seed: int = 0
    """Seed of the rows that are drawn, the noise, the start of the attack, and the resamples."""

    def __post_init__(self) -> None:
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise UnknownName("corruption", name, CORRUPTIONS)
        if wrong := [strength for strength in self.strengths if strength not in STRENGTHS]:
            raise ConfigError(f"strength {wrong[0]} of a corruption is not possible; give 1 to {STRENGTHS[-1]}")
        if beyond := [epsilon for epsilon in self.epsilons if not 0 < epsilon <= 255]:
            raise ConfigError(f"epsilon {beyond[0]:g} is not possible; give it in 255ths, such as 1 2 4")
        if not (self.corruptions and self.strengths) and not self.epsilons:
            raise ConfigError("nothing to measure: name some --corruptions with --strengths, or some --epsilons")
        for name in ("corruptions", "strengths", "epsilons", "ks"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ConfigError(f"{name} {' '.join(map(str, given))} name something twice; leave one out")
        if self.steps < 1 or not (self.step_size is None or self.step_size > 0):
            raise ConfigError(
                f"an attack of {self.steps} steps of {self.step_size} is not possible; give numbers above 0"
            )
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"rows is {self.rows}; give 1 or more, or None for all of them")
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"cut-offs are {self.ks}; give one or more, each at least 1")
