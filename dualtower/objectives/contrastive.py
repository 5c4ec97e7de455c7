"""The contrastive objective: both towers meet in one space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad
from dualtower.evaluation import (
    evaluate,
)
from dualtower.losses import Loss
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Objective
from dualtower.types import Batch, Embeddings

__all__ = ["TOWERS", "Contrastive", "at_least_float32", "joined_loss", "mean_recall"]

TOWERS = ("text_tower", "image_tower", "text_head", "image_head", "logit_scale", "logit_bias")
"""Parts of a model that a contrastive objective trains."""


class Contrastive(Objective):
    """A contrastive loss between the embeddings of both towers."""

    def __init__(self, model: DualTower, loss: Loss) -> None:
        super().__init__(model, idle=("reranker", "fusion"))
        self._loss = loss

    def forward(self, batch: Batch, rng: BatchRNG) -> Embeddings:
        """Embed the rows."""
        embeddings: Embeddings = self.model(batch)
        return embeddings

    def loss(self, outputs: Embeddings, batch: Batch) -> Tensor:
        """The loss of all ranks' embeddings; every rank computes it in full."""
        return joined_loss(self._loss, outputs, batch)

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """Mean recall@10 of both directions."""
        return mean_recall(self.model, items, ("text_to_image", "image_to_text"), batch_size)


def joined_loss(loss: Loss, embeddings: Embeddings, batch: Batch) -> Tensor:
    """A contrastive loss of all ranks' embeddings; every rank computes it in full."""
    assert embeddings.image is not None and embeddings.text is not None
    image, text, product_codes = all_gather_with_grad(embeddings.image, embeddings.text, batch.product_codes)
    return loss(image, text, scale=embeddings.scale, bias=embeddings.bias, product_codes=product_codes)


def mean_recall(model: DualTower, items: ItemDataset, directions: Sequence[str], batch_size: int) -> dict[str, float]:
    """Mean recall@10 of some directions as the score, and each of them."""
    metrics = evaluate(model, items, ks=(10,), bootstrap=0, batch_size=batch_size).report.metrics
    recall = {name: metrics[name]["recall@10"].value for name in directions}
    mean = sum(recall.values()) / len(recall)
    return {"score": mean, **{f"{name}/recall@10": value for name, value in recall.items()}}


def at_least_float32(values: Tensor) -> Tensor:
    """At least float32: autocast computes in less."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
