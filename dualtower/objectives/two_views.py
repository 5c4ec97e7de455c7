"""The objective of a model with one tower: two views of a row meet."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.losses import Loss
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Objective, Views
from dualtower.objectives.contrastive import joined_loss, mean_recall
from dualtower.types import Batch, Embeddings

__all__ = ["TwoViews"]


class TwoViews(Objective):
    """A contrastive loss between two views of the same rows, for a model that has one tower.

    Of images the views are two augmentations, as in SimCLR (https://arxiv.org/abs/2002.05709); of texts they are two
    captions of a row, or the same caption with other tokens and units dropped, as in SimCSE
    (https://arxiv.org/abs/2104.08821). Rows of one product are positives of each other here too.
    """

    def __init__(self, model: DualTower, loss: Loss) -> None:
        super().__init__(model)
        self._loss = loss
        (self.modality,) = model.config.modalities
        self.views = Views(images=2, texts=0) if self.modality == "image" else Views(images=0, texts=2)

    def forward(self, batch: Batch, rng: BatchRNG) -> Embeddings:
        """Embed the first view, and the second one in the place of the other side."""
        if self.modality == "image":
            first, second = self.model(batch), self.model(replace(batch, pixels=batch.more_views[0]))
            return replace(first, text=second.image)
        first, second = self.model(batch), self.model(replace(batch, tokens=batch.more_tokens[0]))
        return replace(first, image=second.text)

    def loss(self, outputs: Embeddings, batch: Batch) -> Tensor:
        """The loss of all ranks' embeddings; every rank computes it in full."""
        return joined_loss(self._loss, outputs, batch)

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """recall@10 of rows among the others of their product."""
        return mean_recall(self.model, items, (f"{self.modality}_to_{self.modality}",), batch_size)
