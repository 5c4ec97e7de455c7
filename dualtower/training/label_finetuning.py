"""Fine-tuning with few labels: the image tower of a model under a linear head, through the one training loop."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from dualtower.data.items import ItemDataset
from dualtower.data.sampling import BatchSampler
from dualtower.errors import ConfigError
from dualtower.evaluation.label_splits import LabeledSplits
from dualtower.models.dual_tower import DualTower
from dualtower.models.whitening import image_tower_alone
from dualtower.objectives.classification import Classification
from dualtower.training.batches import training_collator
from dualtower.training.config import DataConfig, RunConfig, TrainConfig
from dualtower.training.loader import ItemLoader
from dualtower.training.precision import autocast_precision, with_tower_precision
from dualtower.training.trainer import Trainer

__all__ = ["FINETUNING", "finetuned", "image_model"]

logger = logging.getLogger(__name__)

FINETUNING = TrainConfig(batch_size=64, lr=1e-3)
"""What a fine-tuning is told where nothing else is said, but for its budget: few labels make few large batches."""


def image_model(model: DualTower) -> DualTower:
    """A copy of the image side alone; of a model with one tower, a copy.

    A tower that embeds by an earlier stage, as a pretrained one does, is tuned whole: those behind it would not learn.
    """
    if model.config.image is not None and not model.config.image.is_whole:
        return image_tower_alone(model, stage=-1, grid=1)
    config = replace(model.config, text=None, reranker=None, fusion=None, decoder=None)
    alone = DualTower(config)
    weights = model.state_dict()
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    return alone


def finetuned(
    model: DualTower,
    splits: LabeledSplits,
    train: TrainConfig,
    *,
    logit_adjustment: float = 0.0,
    scratch: bool = False,
    workers: int = 1,
    cpu: bool = False,
    name: str = "model",
) -> Callable[[np.ndarray, int], np.ndarray]:
    """What `measure_labels` calls: it fine-tunes a copy of the model on some rows and predicts the test rows.

    Nothing is validated on the way, and the last weights count (averaged ones with `train.ema`): where labels are few,
    the labels of a validation split would be many.

    Args:
        model: With an image tower; it is left as it is.
        splits: Rows to learn from and to predict.
        train: Budget, optimizer, augmentation, ``class_balanced_by``; a batch larger than the rows becomes all of them.
        logit_adjustment: See `Classification`.
        scratch: Begin with fresh weights in place of the model's.
        workers: Loader processes.
        cpu: Train on the processors, also where there is an accelerator.
        name: What the log calls it.

    Raises:
        ConfigError: The model has no image tower, or the config has no budget.
    """
    model.config.require("image", "fine-tuning with labels of images")
    if train.epochs is None and train.steps is None and train.minutes is None:
        raise ConfigError("fine-tuning needs a budget; type --minutes 2 or --epochs 20")
    alone = image_model(model)
    accelerator = Accelerator(
        cpu=cpu or not torch.accelerator.is_available(), mixed_precision=autocast_precision(train)
    )
    measured = train.tower_precision  # of all trainings the first one measures it

    def predict(rows: np.ndarray, draw: int) -> np.ndarray:
        nonlocal measured
        items = splits.train.select(rows)
        settings = replace(
            train,
            batch_size=min(train.batch_size, len(rows)),
            seed=train.seed + draw,
            tower_precision=measured,
            trackers=(),
            checkpoint_steps=None,
            checkpoint_minutes=None,
        )
        logger.info("fine-tuning %s with %s labels, draw %d", name, f"{len(rows):,}", draw + 1)
        torch.manual_seed(settings.seed)
        start = DualTower(alone.config) if scratch else copy.deepcopy(alone)
        with tempfile.TemporaryDirectory(prefix="dualtower-") as folder:
            data = DataConfig(workers=workers)
            config = RunConfig(model=start.config, data=data, train=settings, out=Path(folder))
            config = with_tower_precision(config, start, items, accelerator)
            measured = config.train.tower_precision
            torch.manual_seed(settings.seed)  # the head begins alike, whatever was measured before
            objective = Classification(
                start,
                label=splits.label,
                classes=splits.classes,
                counts=np.bincount(splits.train_labels[rows], minlength=len(splits.classes)),
                logit_adjustment=logit_adjustment,
            )
            trainer = Trainer(config, objective, _loader(config, objective, items), accelerator=accelerator)
            if trainer.fit().ended == "stopped":
                raise KeyboardInterrupt
            tuned = trainer.state.averaged
        accelerator.free_memory()
        assert isinstance(tuned, Classification)
        return tuned.predict(splits.test)

    return predict


def _loader(config: RunConfig, objective: Classification, items: ItemDataset) -> ItemLoader:
    """Batches of images with the one label that is learned."""
    train = config.train
    plan = BatchSampler(items, batch_size=train.batch_size, balance=train.class_balanced_by, seed=train.seed)
    collator = training_collator(config, objective, items)
    labeled = replace(collator, classes={objective.label: objective.classes})
    return ItemLoader(items, plan, labeled, workers=config.data.workers)
