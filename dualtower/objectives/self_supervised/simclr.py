"""SimCLR: two views of an image find each other among all others of the joined batch."""

from __future__ import annotations

import torch
from torch import Tensor

from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad
from dualtower.losses import nt_xent
from dualtower.models.dual_tower import DualTower
from dualtower.models.heads.self_supervised import mlp_head
from dualtower.objectives.base import Views
from dualtower.objectives.config import SelfSupervisedConfig
from dualtower.objectives.self_supervised.base import SelfSupervised, TwoViews, unit
from dualtower.types import Batch

__all__ = ["SimCLR"]


class SimCLR(SelfSupervised):
    """NT-Xent over all 2N views of the joined batch (T. Chen et al. 2020, https://arxiv.org/abs/2002.05709).

    Rows of one product are positives of each other with ``positives="product"``, and those of one label with ``label``,
    which makes it supervised contrastive learning (https://arxiv.org/abs/2004.11362); rows of one product are negatives
    of each other never.
    """

    def __init__(self, model: DualTower, config: SelfSupervisedConfig) -> None:
        super().__init__(model, config)
        self.views = Views(images=2, texts=0, second_image=config.second_image)
        width = self.width_of(model)
        self.projector = mlp_head([width, config.hidden or width, config.projection], last_norm=True)

    def forward(self, batch: Batch, rng: BatchRNG) -> TwoViews:
        """Project both views, in one pass: batch statistics are those of all views."""
        assert batch.pixels is not None
        projected = unit(self.projector(self.features(torch.cat([batch.pixels, *batch.more_views]))))
        return TwoViews(*projected.chunk(2))

    def loss(self, outputs: TwoViews, batch: Batch) -> Tensor:
        """NT-Xent of all ranks' views; every rank computes it in full."""
        first, second, shown = all_gather_with_grad(*outputs, self.shown(batch))
        return nt_xent(
            first,
            second,
            scale=1 / self.config.temperature,
            product_codes=shown[:, 0],
            labels=None if self.config.positives == "view" else shown[:, 1],
            tile=self.config.tile,
        )
