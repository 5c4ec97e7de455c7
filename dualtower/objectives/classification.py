"""The objective of fine-tuning with labels: a linear head on the image tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import column_labels
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad
from dualtower.errors import ConfigError
from dualtower.evaluation import class_metrics
from dualtower.models.dual_tower import DualTower
from dualtower.models.encoding import evaluation_mode
from dualtower.objectives.base import Objective, Views
from dualtower.objectives.contrastive import at_least_float32
from dualtower.sharding import combine, shard
from dualtower.types import Batch

__all__ = ["Classification"]

_IDLE = ("text_tower", "text_head", "image_head", "logit_scale", "logit_bias", "reranker", "fusion", "decoder")
_STD, _FASTER = 0.01, 10.0


class Logits(NamedTuple):
    """What the head says of each row, ``[B, C]``, and the classes of the rows, int64 ``[B]``, -1 where unknown."""

    logits: Tensor
    labels: Tensor


class Classification(Objective):
    """Cross entropy of a linear head on the pooled features of the image tower, over the joined batch.

    Each row's features are brought to mean 0 and deviation 1, without anything to learn, so that one learning rate of
    the head suits all towers. The head begins small (a deviation of 0.01) and learns ten times as fast as the tower:
    features that fit a head of noise would first be torn up by it (A. Kumar et al. 2022,
    https://arxiv.org/abs/2202.10054).

    Args:
        model: With an image tower.
        label: Attribute that is predicted.
        classes: Its values; a batch's labels must have a column for it alone, in their order.
        counts: Training rows of each class, ``[C]``.
        logit_adjustment: Factor of the log of a class's share of the training rows that is added to its logit while
            training; 1 makes all classes equally likely in prediction (A. K. Menon et al. 2021,
            https://arxiv.org/abs/2007.07314).

    Raises:
        ConfigError: The model has no image tower, or there is a class without a row.
    """

    views = Views(images=1, texts=0)
    lr_factors: ClassVar = {"head": _FASTER}

    def __init__(
        self,
        model: DualTower,
        *,
        label: str,
        classes: Sequence[str],
        counts: np.ndarray,
        logit_adjustment: float = 0.0,
    ) -> None:
        model.config.require("image", f"a classification of images by {label}")
        super().__init__(model, idle=_IDLE)
        if len(counts) != len(classes) or not np.all(counts > 0):
            raise ConfigError(
                f"{label}: {len(classes)} classes with {list(counts)} training rows; each class needs one or more"
            )
        assert model.image_tower is not None
        self.label, self.classes, self.counts = label, tuple(classes), counts
        self.head = nn.Linear(model.image_tower.width, len(classes))
        nn.init.normal_(self.head.weight, std=_STD)
        nn.init.zeros_(self.head.bias)
        self.adjustment = logit_adjustment * torch.tensor(counts / counts.sum(), dtype=torch.float32).log()

    def forward(self, batch: Batch, rng: BatchRNG) -> Logits:
        """Classify the images."""
        assert batch.pixels is not None and batch.labels is not None
        return Logits(self._logits(batch), batch.labels[:, 0])

    def loss(self, outputs: Logits, batch: Batch) -> Tensor:
        """The mean over all ranks' rows whose class is known; every rank computes it in full."""
        logits, labels = all_gather_with_grad(at_least_float32(outputs.logits), outputs.labels)
        known = (labels >= 0).sum().clamp(min=1)
        adjusted = logits + self.adjustment.to(logits)
        return F.cross_entropy(adjusted, labels, ignore_index=-1, reduction="sum") / known

    def predict(self, items: ItemDataset, *, batch_size: int = 256) -> np.ndarray:
        """Class of each row's (first) image, int64 ``[N]``."""
        collator = replace(self.model.collator(), tokenizer=None, attributes=None, classes={})
        predicted = np.zeros(len(items), np.int64)
        with evaluation_mode(self):
            for start in shard(range(0, len(items), batch_size)):
                rows = range(start, min(start + batch_size, len(items)))
                batch = collator([items[row] for row in rows]).to(self.model.device)
                predicted[rows] = self._logits(batch).argmax(1).cpu().numpy()
        combine(predicted)
        return predicted

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """Macro-F1 as the score, and the accuracy beside it."""
        truth = column_labels(self.label, self.classes, items.columns.attributes[self.label])
        found = class_metrics(truth, self.predict(items, batch_size=batch_size), training_counts=self.counts)
        return {"score": found.macro_f1, "accuracy": found.accuracy, "macro_f1": found.macro_f1}

    def _logits(self, batch: Batch) -> Tensor:
        assert batch.pixels is not None
        features = at_least_float32(self.model.image_features(batch.pixels).pooled)
        logits: Tensor = self.head(F.layer_norm(features, features.shape[1:]))
        return logits
