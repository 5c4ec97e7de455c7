"""SimCLR: two views of an image find each other among all others of the joined batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad, rank
from dualtower.evaluation.robustness.attack import pgd
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

    With an ``adversary``, the first view of each image is moved, within a bound that nobody sees, to where its match is
    hard to find: adversarial contrastive learning (Z. Jiang et al. 2020, https://arxiv.org/abs/2010.13337, attacked
    against standard views). Luo et al. 2023 (DynACL, https://arxiv.org/abs/2303.01289) let the augmentation become
    weaker meanwhile, as ``train.final_augmentation_strength`` does.
    """

    can_be_attacked = True

    def __init__(self, model: DualTower, config: SelfSupervisedConfig) -> None:
        super().__init__(model, config)
        self.views = Views(images=2, texts=0, second_image=config.second_image)
        width = self.width_of(model)
        self.projector = mlp_head([width, config.hidden or width, config.projection], last_norm=True)

    def forward(self, batch: Batch, rng: BatchRNG) -> TwoViews:
        """Project both views, in one pass: batch statistics are those of all views."""
        assert batch.pixels is not None
        first, second = batch.pixels, batch.more_views[0]
        if self.config.adversary:
            first = self._attacked(first, second, self.shown(batch)[:, 0], rng)
        return TwoViews(*self._projected(torch.cat([first, second])).chunk(2))

    def _projected(self, pixels: Tensor) -> Tensor:
        return unit(self.projector(self.features(pixels)))

    def _attacked(self, first: Tensor, second: Tensor, products: Tensor, rng: BatchRNG) -> Tensor:
        """The first views where they find their second views the least, among those of the joined batch.

        What a row finds depends on no other attacked row, so that the attack is the same on any number of ranks.
        """
        rows = torch.arange(rank() * len(first), (rank() + 1) * len(first), device=first.device)
        start = 2 * torch.rand(rng.size, *first.shape[1:], generator=rng.generator)[rows.cpu()].to(first.device) - 1
        with _at_rest(self):
            with torch.no_grad():
                keys, shown = all_gather_with_grad(self._projected(second), products)
            kin = (products.unsqueeze(1) == shown).scatter(1, rows.unsqueeze(1), False)

            def lost(pixels: Tensor) -> Tensor:
                logits = self._projected(pixels) @ keys.T / self.config.temperature
                return F.cross_entropy(logits.masked_fill(kin, -torch.inf), rows, reduction="none")

            bound, steps = self.config.adversary, self.config.adversary_steps
            return pgd(first, lost, epsilon=bound, steps=steps, start=start)

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


@contextmanager
def _at_rest(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while: an attack moves no batch statistics, and no dropout blurs it."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
