"""The product objective: one vector for title, image and attributes of a product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import column_labels
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad
from dualtower.errors import ConfigError
from dualtower.evaluation import (
    Evaluation,
    Section,
    evaluate_heads,
    evaluate_product_retrieval,
)
from dualtower.evaluation.config import EvaluationConfig
from dualtower.losses import Loss
from dualtower.losses.supervised import supervised_contrastive
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Objective
from dualtower.objectives.config import TaskConfig
from dualtower.objectives.contrastive import TOWERS, at_least_float32, joined_loss
from dualtower.types import Batch, Embeddings

__all__ = ["ProductFused", "ProductViews", "log_shares"]


class ProductViews(NamedTuple):
    """A product twice, with other inputs hidden each time.

    Attributes:
        first: Fused vectors ``[B, D]``.
        second: Fused vectors ``[B, D]``.
        tasks: Head -> logits of both views, ``[2 * B, classes]``.
        embeddings: Embeddings of the towers.
    """

    first: Tensor
    second: Tensor
    tasks: dict[str, Tensor]
    embeddings: Embeddings


class ProductFused(Objective):
    """Train one vector per product: alike for rows that belong together, and telling of what heads predict.

    Args:
        model: With a fusion.
        config: Losses and their weights.
        classes: Attribute -> classes, for the columns of a batch's labels.
        log_shares: Head -> log of each class's share of the training rows, ``[classes]``.
        pair_loss: Between the two views of every product.
        contrastive: Between the towers' embeddings; keeps them in shape where they are trained too; None where both are
            locked for good.

    Raises:
        ConfigError: The model has no fusion.
    """

    def __init__(
        self,
        model: DualTower,
        config: TaskConfig,
        *,
        classes: Mapping[str, Sequence[str]],
        log_shares: Mapping[str, Tensor],
        pair_loss: Loss,
        contrastive: Loss | None,
    ) -> None:
        super().__init__(model, idle=("reranker",) if contrastive else ("reranker", *TOWERS))
        if model.fusion is None:
            raise ConfigError("objective 'product' trains a fusion; give the recipe's model a fusion=FusionConfig()")
        self.config, self.classes = config, classes
        self._pair_loss, self._contrastive = pair_loss, contrastive
        self.log_shares = {name: config.logit_adjustment * shares for name, shares in log_shares.items()}

    def forward(self, batch: Batch, rng: BatchRNG) -> ProductViews:
        """Fuse every product twice; dropout makes the difference."""
        embeddings = self.model(batch)
        (first, tasks), (second, again) = (self.model.fuse(embeddings, batch) for _ in range(2))
        return ProductViews(first, second, {n: torch.cat([tasks[n], again[n]]) for n in tasks}, embeddings)

    def loss(self, outputs: ProductViews, batch: Batch) -> Tensor:
        """The weighted sum of all losses over the joined batch."""
        weights = self.config.head_weights
        halves = [half for name in weights for half in at_least_float32(outputs.tasks[name]).chunk(2)]
        known = batch.product_codes.new_zeros(len(batch.product_codes), 0) if batch.labels is None else batch.labels
        first, second, product_codes, labels, *halves = all_gather_with_grad(
            outputs.first, outputs.second, batch.product_codes, known, *halves
        )
        scale = first.new_tensor(1 / self.config.temperature)
        bias = scale.new_zeros(())
        total = self.config.identity * self._pair_loss(
            first, second, scale=scale, bias=bias, product_codes=product_codes
        )
        same = product_codes if not self.config.labels else self._joint_label(labels)
        both = torch.cat([first, second])
        total = total + self.config.supervised * supervised_contrastive(both, torch.cat([same, same]), scale=scale)
        for number, (name, weight) in enumerate(weights.items()):
            logits = torch.cat(halves[2 * number : 2 * number + 2]) + self.log_shares[name].to(first.device)
            target = labels[:, number].repeat(2)
            # A batch in which no class is known has a gradient too, of zero: the ranks wait for one of every head.
            known_rows = (target >= 0).sum().clamp(min=1)
            total = total + weight * F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / known_rows
        if self._contrastive is not None:
            total = total + joined_loss(self._contrastive, outputs.embeddings, batch)
        return total

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """nDCG@10 of the fused vectors, and of the towers' own beside it."""
        similar = evaluate_product_retrieval(
            self.model, items, relevance=self.config.labels, ks=(10,), bootstrap=0, batch_size=batch_size
        )
        ndcg = {kind: table["ndcg@10"].value for kind, table in similar.metrics.items()}
        return {"score": ndcg["fused"], **{f"{kind}/ndcg@10": value for kind, value in ndcg.items()}}

    def sections(
        self,
        model: DualTower,
        items: ItemDataset,
        train: ItemDataset,
        settings: EvaluationConfig,
        *,
        result: Evaluation | None,
        progress: bool,
    ) -> list[Section]:
        """Report which products the fused vectors find, and what the heads predict."""
        similar = evaluate_product_retrieval(
            model,
            items,
            relevance=self.config.labels,
            ks=settings.ks,
            bootstrap=settings.bootstrap,
            batch_size=settings.batch_size,
        )
        heads = [evaluate_heads(model, items, train.columns.attributes)] if self.config.heads else []
        return [similar.section(), *heads]

    def _joint_label(self, labels: Tensor) -> Tensor:
        """One number for the values of all label attributes; -1 where one of them is unknown."""
        names = list(self.classes)
        joint = labels.new_zeros(len(labels))
        for name in self.config.labels:
            joint = joint * len(self.classes[name]) + labels[:, names.index(name)]
        unknown = torch.stack([labels[:, names.index(name)] < 0 for name in self.config.labels]).any(0)
        return joint.masked_fill(unknown, -1)


def log_shares(classes: Sequence[str], values: Sequence[Any]) -> Tensor:
    """Log of each class's share of the rows whose class is known, float32 ``[classes]``."""
    labels = torch.from_numpy(column_labels("", classes, values))
    counts = torch.bincount(labels[labels >= 0], minlength=len(classes)).float()
    return (counts / counts.sum()).clamp(min=1e-12).log()
