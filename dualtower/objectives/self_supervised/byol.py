"""BYOL: a network predicts what its own slow copy makes of another view, and needs no negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad
from dualtower.losses import negative_cosine
from dualtower.models.dual_tower import DualTower
from dualtower.models.heads.self_supervised import mlp_head
from dualtower.objectives.base import Views
from dualtower.objectives.config import SelfSupervisedConfig
from dualtower.objectives.self_supervised.base import unit
from dualtower.objectives.self_supervised.slow_copy import Predictions, WithSlowCopy
from dualtower.types import Batch

__all__ = ["BYOL"]


class BYOL(WithSlowCopy):
    """Bootstrap your own latent (Grill et al. 2020, https://arxiv.org/abs/2006.07733).

    Symmetric, with a predictor on the network alone and no gradient into its copy, whose momentum grows to
    `final_momentum`. On several ranks it needs batch statistics of all of them (`train.sync_batchnorm`). With
    ``positives="product"``, the second view is of another image of the product, where there is one.
    """

    def __init__(self, model: DualTower, config: SelfSupervisedConfig) -> None:
        width, hidden = self.width_of(model), config.hidden or 2 * self.width_of(model)
        super().__init__(model, config, mlp_head([width, hidden, config.projection]))
        self.views = Views(images=2, texts=0, second_image=config.second_image)
        self.predictor = mlp_head([config.projection, hidden, config.projection])

    def forward(self, batch: Batch, rng: BatchRNG) -> Predictions:
        """Predict from each view what the copy makes of the other."""
        assert batch.pixels is not None
        both = torch.cat([batch.pixels, *batch.more_views])
        predicted = unit(self.predictor(self.project(both)))
        return Predictions(*predicted.chunk(2), *self.project_slowly(both).chunk(2))

    def loss(self, outputs: Predictions, batch: Batch) -> Tensor:
        """The mean of both directions over all ranks' rows; every rank computes it in full."""
        first, second, first_key, second_key = all_gather_with_grad(*outputs)
        return (negative_cosine(first, second_key) + negative_cosine(second, first_key)) / 2
