"""What the objectives can be told."""

from __future__ import annotations

from dataclasses import dataclass

from dualtower.errors import ConfigError

__all__ = ["MatchingConfig", "TaskConfig"]


@dataclass(frozen=True)
class MatchingConfig:
    """Which wrong partners a re-ranker learns to tell from the right one."""

    negatives: int = 4
    """Hard negatives of every text and of every image, out of the joined batch."""
    temperature: float = 1.0
    """Negatives are drawn like the softmax of the towers' logits divided by this; 0 takes the hardest."""

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ConfigError(f"matching.negatives is {self.negatives}; it must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"matching.temperature is {self.temperature}; it must not be negative")


@dataclass(frozen=True)
class TaskConfig:
    """What the vector of a whole product is trained for."""

    labels: tuple[str, ...] = ()
    """Attributes; products that share the values of all of them attract each other. None: rows of one product do."""
    supervised: float = 1.0
    """Weight of the supervised contrastive loss over `labels`."""
    identity: float = 1.0
    """Weight of `loss` (InfoNCE, hinge ...) between two views of a product, each with other inputs hidden."""
    temperature: float = 0.1
    """Temperature of the contrastive losses."""
    heads: tuple[str, ...] = ()
    """Attributes to predict from the vector."""
    weights: tuple[float, ...] = ()
    """Weight of each head's loss; default 1 each."""
    logit_adjustment: float = 0.0
    """Factor of the log of a class's share that is added to its logit while training, for long tails; 1 is balanced."""

    def __post_init__(self) -> None:
        for name in ("labels", "heads"):  # both `a b` and `a,b` on the command line
            parts = tuple(part for given in getattr(self, name) for part in given.split(",") if part)
            object.__setattr__(self, name, parts)
        if self.weights and len(self.weights) != len(self.heads):
            raise ConfigError(f"task.weights has {len(self.weights)} numbers for {len(self.heads)} task.heads")
        if min(self.supervised, self.identity, *self.weights, 0.0) < 0 or not self.temperature > 0:
            raise ConfigError("task: weights must not be negative, and the temperature must be above 0")

    @property
    def head_weights(self) -> dict[str, float]:
        """Weight of each head."""
        return dict(zip(self.heads, self.weights or [1.0] * len(self.heads), strict=True))
