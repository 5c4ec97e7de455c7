"""What self-supervised objectives have in common: an image tower that learns from images, and how it is judged."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.data.items import ItemDataset
from dualtower.errors import ConfigError
from dualtower.evaluation import Evaluation, Section
from dualtower.evaluation.config import EvaluationConfig
from dualtower.evaluation.representation import representation_sections
from dualtower.evaluation.spread import spread
from dualtower.models.dual_tower import DualTower
from dualtower.models.towers.image import TimmTower
from dualtower.models.whitening import image_features, image_tower_alone, whitened
from dualtower.objectives.base import Objective
from dualtower.objectives.config import SelfSupervisedConfig
from dualtower.objectives.contrastive import at_least_float32
from dualtower.types import Batch

__all__ = ["SelfSupervised", "TwoViews", "unit"]

WHITENED_BY = 20_000
"""Training images, at most, by which features are whitened."""
WIDEST = 1024
"""Numbers that a finished model's vector has at most, unless `ssl.grid` says more."""
WATCHED = 2000
"""Images of the validation split by which a collapse is noticed."""


class TwoViews(NamedTuple):
    """What was made of the two views of every image, ``[B, D]`` each."""

    first: Tensor
    second: Tensor


class SelfSupervised(Objective):
    """Base of the objectives that train an image tower from images alone.

    What they put on the tower is thrown away in the end: the model's embedding is the tower's pooled features.

    Args:
        model: With an image tower and ``head="none"``.
        config: Its settings.

    Raises:
        ConfigError: The model has no image tower, or a head that nothing would train.
    """

    measured_by_retrieval = False
    can_be_attacked = False
    """Whether it can train on attacked views."""

    def __init__(self, model: DualTower, config: SelfSupervisedConfig) -> None:
        super().__init__(model, idle=("text_tower", "text_head", "image_head", "logit_scale", "logit_bias"))
        if model.image_tower is None or model.config.head != "none":
            raise ConfigError(
                "self-supervised training learns the features of an image tower, and this model has "
                + ("no image tower" if model.image_tower is None else f"a {model.config.head} head behind them")
                + "; type --model.head none, and a --model.image"
            )
        stages = model.image_tower.stage_count if isinstance(model.image_tower, TimmTower) else 0
        if stages and -config.stage > stages:
            raise ConfigError(
                f"ssl.stage is {config.stage}, and the image tower has {stages} stages; give one from -1 to -{stages}"
            )
        if config.adversary and not self.can_be_attacked:
            raise ConfigError(
                f"ssl.adversary is {config.adversary}, and only objective 'simclr' trains on attacked views"
            )
        self.config = config

    @staticmethod
    def width_of(model: DualTower) -> int:
        """Width of the image tower's features; 0 where there is no tower, which the constructor refuses."""
        return 0 if model.image_tower is None else model.image_tower.width

    def shown(self, batch: Batch) -> Tensor:
        """What each row shows, int64 ``[B, 2]``: its product, and what it attracts.

        The second is -1 where the views of a row alone attract each other. A row without label attracts its product.
        """
        products = batch.product_codes
        attracts = products
        if self.config.positives == "view":
            attracts = torch.full_like(products, -1)
        elif self.config.positives == "label":
            assert batch.labels is not None
            attracts = torch.where(batch.labels[:, 0] < 0, products, batch.labels[:, 0])
        return torch.stack([products, attracts], dim=1)

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features of the model's image tower, ``[B, W]``."""
        return self.model.image_features(pixels).pooled

    def finished(self, model: DualTower, train: ItemDataset, settings: EvaluationConfig) -> DualTower:
        """The tower under a head that whitens what an earlier stage of it sees, by some of the training images.

        Features that a decoder draws from, and those of a backbone that timm cannot look into, are the last ones.
        """
        if not self.config.whiten:
            return model
        tower = model.image_tower
        if model.decoder is None and isinstance(tower, TimmTower) and tower.stage_count:
            grid = self.config.grid or tower.widest_grid(self.config.stage, WIDEST)
            model = image_tower_alone(model, stage=self.config.stage, grid=grid)
        images = train.images.select(np.arange(0, len(train), math.ceil(len(train) / WHITENED_BY)))
        return whitened(model, image_features(model, images, batch_size=settings.batch_size))

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """How far the embeddings lie apart, without a score: the last weights are the ones to keep.

        What pretraining is for is measured with labels, which must not choose its weights.
        """
        rows = range(0, len(items), math.ceil(len(items) / WATCHED))
        found = spread(self.model.encode_image([items.images[row] for row in rows], batch_size=batch_size))
        return {"deviation": found.deviation, "effective_rank": found.effective_rank}

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
        """What labels and products can be found by the embeddings, beside random weights and raw pixels."""
        return representation_sections(
            model,
            items,
            train,
            labels=self.config.probe,
            settings=settings,
            progress=progress,
        )


def unit(vectors: Tensor) -> Tensor:
    """At least float32, and of unit length."""
    return F.normalize(at_least_float32(vectors), dim=1)
