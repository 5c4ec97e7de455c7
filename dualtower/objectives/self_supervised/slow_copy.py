"""A slow copy of a network: the teacher of MoCo and BYOL."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dualtower.models.dual_tower import DualTower
from dualtower.objectives.config import SelfSupervisedConfig
from dualtower.objectives.self_supervised.base import SelfSupervised, unit

__all__ = ["Predictions", "WithSlowCopy"]


class Predictions(NamedTuple):
    """What was predicted from both views, and what the slow copy made of both: ``[B, D]`` of unit length each."""

    first: Tensor
    second: Tensor
    first_key: Tensor
    second_key: Tensor


class WithSlowCopy(SelfSupervised):
    """An objective with a copy of tower and projector that follows them after every step (a momentum encoder).

    Args:
        model: With an image tower and ``head="none"``.
        config: Momentum and its schedule.
        projector: What stands on the tower.
    """

    def __init__(self, model: DualTower, config: SelfSupervisedConfig, projector: nn.Module) -> None:
        super().__init__(model, config)
        self.projector = projector
        assert model.image_tower is not None
        self.slow_tower = copy.deepcopy(model.image_tower).requires_grad_(False)
        self.slow_projector = copy.deepcopy(projector).requires_grad_(False)

    def project(self, pixels: Tensor) -> Tensor:
        """What the network makes of a view, ``[B, D]``, not normalized."""
        projected: Tensor = self.projector(self.features(pixels))
        return projected

    @torch.no_grad()
    def project_slowly(self, pixels: Tensor) -> Tensor:
        """What its slow copy makes of a view, ``[B, D]`` of unit length; it has no gradient."""
        return unit(self.slow_projector(self.model.image_features(pixels, self.slow_tower).pooled))

    @torch.no_grad()
    def after_step(self, remembered: Sequence[Any], progress: float) -> None:
        """Move the weights of the copy towards the network's; batch statistics are each one's own."""
        old: list[Tensor] = [*self.slow_tower.parameters(), *self.slow_projector.parameters()]
        assert self.model.image_tower is not None
        new: list[Tensor] = [*self.model.image_tower.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(old, new, 1 - self.momentum(progress))

    def momentum(self, progress: float) -> float:
        """How much of itself the copy keeps: a cosine from `momentum` to `final_momentum` (BYOL, section 3.2)."""
        first, last = self.config.momentum, self.config.final_momentum
        return last - (last - first) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
