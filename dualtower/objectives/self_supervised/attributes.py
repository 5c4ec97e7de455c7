"""The attribute objective: every attribute of a product is told from one code of those that were not hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import AttributesConfig, column_labels, column_numbers
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad
from dualtower.errors import ConfigError, DataError
from dualtower.evaluation import Evaluation, Section
from dualtower.evaluation.attributes import (
    evaluate_attribute_retrieval,
    evaluate_hidden_attributes,
    hidden_reconstructions,
    item_attributes,
)
from dualtower.evaluation.config import EvaluationConfig
from dualtower.losses.attributes import attribute_losses
from dualtower.models.dual_tower import DualTower
from dualtower.models.heads.attribute_encoder import Reconstruction
from dualtower.objectives.base import Objective, Views
from dualtower.objectives.config import ReconstructionConfig
from dualtower.objectives.contrastive import at_least_float32
from dualtower.types import Batch

__all__ = ["AttributeReconstruction", "attribute_uncertainty"]

LEAST = 0.1
"""Nats that an attribute counts as uncertain at least: the exceptions to what is nearly always so are not to drown it
all."""


class AttributeReconstruction(Objective):
    """Train an autoencoder of attributes, which are hidden by chance on the way in.

    The loss of each attribute is its mean over the rows of the joined batch that have it, divided by what it is for
    somebody who knows nothing but how frequent its values are (`attribute_uncertainty`). Each loss is then the share of
    what there is to know that the code does not tell, 1 at the start, whether it is of a color or of a price; their
    mean is what is minimized.

    Args:
        model: With an attribute encoder.
        config: By what it is measured.
        train: Attribute -> values of the training rows.

    Raises:
        ConfigError: The model has no attribute encoder.
        DataError: An attribute has the same value in all rows.
        UnknownName: There is no such attribute.
    """

    views = Views(images=0, texts=0, attributes=True)
    measured_by_retrieval: ClassVar[bool] = False

    def __init__(self, model: DualTower, config: ReconstructionConfig, train: Mapping[str, Sequence[Any]]) -> None:
        super().__init__(model, idle=("logit_scale", "logit_bias"))
        if model.attribute_encoder is None:
            raise ConfigError(
                "objective 'attributes' trains an attribute encoder; give the recipe's model an "
                "attribute_encoder=AttributeEncoderConfig()"
            )
        self.config, self.encoder_config = config, model.attribute_encoder.config.attributes
        self.uncertainty = attribute_uncertainty(self.encoder_config, train)

    def forward(self, batch: Batch, rng: BatchRNG) -> Reconstruction:
        """Reconstruct the attributes of this rank's rows."""
        encoder = self.model.attribute_encoder
        assert encoder is not None and batch.attributes is not None
        found: Reconstruction = encoder(batch.attributes)
        return found

    def loss(self, outputs: Reconstruction, batch: Batch) -> Tensor:
        """The mean over the attributes of the share that stays unknown, over the joined batch."""
        assert batch.attributes is not None
        logits, numbers = [at_least_float32(found) for found in outputs.logits], at_least_float32(outputs.numbers)
        sums, counts = attribute_losses(logits, numbers, batch.attributes)
        all_sums, all_counts = all_gather_with_grad(sums.unsqueeze(0), counts.unsqueeze(0))
        # An attribute that no row of the batch has is no part of the sum, and has a gradient of zero.
        means = all_sums.sum(0) / all_counts.sum(0).clamp(min=1)
        return (means / means.new_tensor(list(self.uncertainty.values()))).mean()

    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """What share of each attribute is told by the others while it is hidden, and the mean of them as the score.

        Raises:
            DataError: No row has a value that training knew.
        """
        encoder = self.model.attribute_encoder
        assert encoder is not None
        values = item_attributes(self.encoder_config, items)
        told = {}
        hidden = hidden_reconstructions(self.model, values, batch_size=batch_size)
        for place, (name, found) in enumerate(zip(self.uncertainty, hidden, strict=True)):
            sums, counts = attribute_losses(found.logits, found.numbers, values)
            if counts[place]:
                told[name] = 1 - (sums[place] / counts[place]).item() / self.uncertainty[name]
        if not told:
            raise DataError(f"{items.card}, {items.split}: no row has a value of {', '.join(self.uncertainty)}")
        return {"score": float(np.mean(list(told.values()))), **{f"told/{name}": share for name, share in told.items()}}

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
        """How well hidden attributes are predicted, and what the code finds beside one-hot vectors."""
        hidden = evaluate_hidden_attributes(
            model, items, train, bootstrap=settings.bootstrap, batch_size=settings.batch_size
        )
        similar = evaluate_attribute_retrieval(
            model,
            items,
            relevance=self.config.relevance,
            missing=self.config.missing,
            bootstrap=settings.bootstrap,
            batch_size=settings.batch_size,
        )
        return [hidden, similar.section()]


def attribute_uncertainty(config: AttributesConfig, train: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """The loss of each attribute for somebody who knows nothing of a product, categories first.

    That is the entropy of a category in nats, and the smooth L1 loss of a number about its mean; at least 0.1.

    Args:
        config: With what training knew, see `fit_attributes`.
        train: Attribute -> values of the training rows.

    Raises:
        DataError: An attribute has the same value in all rows that have any.
    """
    found = {}
    for name, known in config.categories.items():
        labels = column_labels(name, known, train[name])
        counts = np.bincount(labels[labels >= 0], minlength=len(known))
        shares = counts[counts > 0] / counts.sum()
        if len(shares) < 2:
            raise _constant(name, known[int(counts.argmax())])
        found[name] = max(LEAST, float(-(shares * np.log(shares)).sum()))
    for name, (mean, deviation) in config.numbers.items():
        values = column_numbers(name, mean, deviation, train[name])
        values = values[~np.isnan(values)]
        if np.ptp(values) == 0:
            raise _constant(name, f"{mean:g}")
        far = np.abs(values)
        found[name] = max(LEAST, float(np.where(far < 1, far**2 / 2, far - 0.5).mean()))
    return found


def _constant(name: str, value: str) -> DataError:
    return DataError(
        f"attribute {name!r} is {value} in all training rows that have it; there is nothing to reconstruct, leave it "
        "out of attribute_encoder.attributes.names"
    )
