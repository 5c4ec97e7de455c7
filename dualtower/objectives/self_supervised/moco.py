"""MoCo: a view is told from many others by keys that a slow copy of the network has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad, world_size
from dualtower.errors import ConfigError
from dualtower.losses import contrast_with_keys, contrast_with_queue
from dualtower.models.dual_tower import DualTower
from dualtower.models.heads.self_supervised import mlp_head
from dualtower.objectives.base import Views
from dualtower.objectives.config import SelfSupervisedConfig
from dualtower.objectives.self_supervised.base import unit
from dualtower.objectives.self_supervised.slow_copy import Predictions, WithSlowCopy
from dualtower.types import Batch

__all__ = ["MoCo", "MoCoV3"]


class Keyed(NamedTuple):
    """What the network made of one view, what its slow copy made of the other, and what the rows show.

    Attributes:
        query: ``[B, D]`` of unit length.
        key: ``[B, D]`` of unit length, without gradient.
        shown: int64 ``[B, 2]``, see `SelfSupervised.shown`.
    """

    query: Tensor
    key: Tensor
    shown: Tensor


class MoCo(WithSlowCopy):
    """MoCo v2 (X. Chen et al. 2020, https://arxiv.org/abs/2003.04297): negatives come from a queue of earlier keys.

    The queue is the same on all ranks, and begins as random unit vectors that show nothing. Keys of a row's own product
    are never its negatives; with ``positives="product"`` they are positives, and those of its label with ``label``.

    Args:
        model: With an image tower and ``head="none"``.
        config: Its settings.
        batch_size: Rows per process and forward pass.
        accumulate: Forward passes per step.

    Raises:
        ConfigError: A step's keys do not fill the queue a whole number of times.
    """

    queue: Tensor
    queue_shown: Tensor
    place: Tensor

    def __init__(self, model: DualTower, config: SelfSupervisedConfig, *, batch_size: int, accumulate: int = 1) -> None:
        width = self.width_of(model)
        super().__init__(model, config, mlp_head([width, config.hidden or width, config.projection], norm=False))
        keys = batch_size * world_size() * accumulate
        if config.queue < keys or config.queue % keys:
            raise ConfigError(
                f"ssl.queue is {config.queue}, and a step brings {keys} keys; the queue must hold those of a whole "
                f"number of steps, such as --ssl.queue {max(1, round(config.queue / keys)) * keys}"
            )
        self.views = Views(images=2, texts=0, second_image=config.second_image)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.projection), dim=1))
        self.register_buffer("queue_shown", torch.full((config.queue, 2), -1, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, rng: BatchRNG) -> Keyed:
        """The query of one view and the key of the other."""
        assert batch.pixels is not None
        key = self.project_slowly(batch.more_views[0])
        return Keyed(unit(self.project(batch.pixels)), key, self.shown(batch))

    def loss(self, outputs: Keyed, batch: Batch) -> Tensor:
        """The contrast of all ranks' rows with the queue; every rank computes it in full."""
        query, key, shown = all_gather_with_grad(*outputs)
        scale = 1 / self.config.temperature
        return contrast_with_queue(query, key, queue=self.queue, scale=scale, shown=shown, queue_shown=self.queue_shown)

    def remember(self, outputs: Keyed) -> Keyed:
        """The keys, which join the queue."""
        return Keyed(outputs.query[:0].detach(), outputs.key, outputs.shown)

    @torch.no_grad()
    def after_step(self, remembered: Sequence[Keyed], progress: float) -> None:
        """Move the copy, and put the keys of all ranks in the place of the oldest ones."""
        super().after_step(remembered, progress)
        for outputs in remembered:
            keys, shown = all_gather_with_grad(outputs.key, outputs.shown)
            places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
            self.queue[places] = keys.to(self.queue.dtype)
            self.queue_shown[places] = shown
            self.place.copy_((self.place + len(keys)) % len(self.queue))


class MoCoV3(WithSlowCopy):
    """MoCo v3 (X. Chen et al. 2021, https://arxiv.org/abs/2104.02057): a large batch for the queue, and a predictor.

    The loss is symmetric; as in the paper it is multiplied by twice the temperature.
    """

    def __init__(self, model: DualTower, config: SelfSupervisedConfig) -> None:
        width, hidden = self.width_of(model), config.hidden or 2 * self.width_of(model)
        super().__init__(model, config, mlp_head([width, hidden, hidden, config.projection], last_norm=True))
        self.views = Views(images=2, texts=0, second_image=config.second_image)
        self.predictor = mlp_head([config.projection, hidden, config.projection], last_norm=True)

    def forward(self, batch: Batch, rng: BatchRNG) -> Predictions:
        """Predict the other view's key from each view."""
        assert batch.pixels is not None
        both = torch.cat([batch.pixels, *batch.more_views])
        predicted = unit(self.predictor(self.project(both)))
        return Predictions(*predicted.chunk(2), *self.project_slowly(both).chunk(2))

    def loss(self, outputs: Predictions, batch: Batch) -> Tensor:
        """The contrast of all ranks' rows, both ways; every rank computes it in full."""
        first, second, first_key, second_key, shown = all_gather_with_grad(*outputs, self.shown(batch))
        scale = 1 / self.config.temperature
        both_ways = contrast_with_keys(first, second_key, scale=scale, shown=shown) + contrast_with_keys(
            second, first_key, scale=scale, shown=shown
        )
        return 2 * self.config.temperature * both_ways
