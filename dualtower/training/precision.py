"""The precision that a run computes in: asked for, given by the hardware, or measured once and kept."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from dualtower.config import from_dict, to_dict
from dualtower.data.items import ItemDataset
from dualtower.errors import ConfigError
from dualtower.models.dual_tower import DualTower
from dualtower.models.precision import ROWS, TowerPrecision, measure_precision
from dualtower.training.config import RunConfig, TrainConfig

__all__ = ["autocast_precision", "with_tower_precision"]

logger = logging.getLogger(__name__)


def autocast_precision(train: TrainConfig) -> str:
    """Accelerate's name of the precision that all of the forward pass is autocast to.

    With `auto`, that is bf16 (else fp16) on an accelerator; on processors each tower has a precision of its own.

    Raises:
        ConfigError: fp16 without an accelerator, for which Accelerate would compute in float32 in silence.
    """
    if train.precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError("train.precision fp16 needs a GPU, and there is none here; on CPUs choose auto, bf16 or fp32")
    if train.precision != "auto":
        return "no" if train.precision == "fp32" else train.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "no"


def with_tower_precision(
    config: RunConfig, model: DualTower, items: ItemDataset, accelerator: Accelerator
) -> RunConfig:
    """The run's config with the towers' precision, under which the model computes from now on.

    With `train.precision auto` on processors it is measured by the first process, and all take its choice; a resumed
    run takes what it began with, and a config that holds a choice keeps it, whatever machine they go on on. A model
    without towers has none.
    """
    train = config.train
    measures = accelerator.device.type == "cpu"
    if train.precision != "auto" or not model.config.modalities:
        return config
    if not (measures or config.resume or train.tower_precision):
        return config
    chosen = [_chosen(config, model, items) if accelerator.is_main_process else None]
    broadcast_object_list(chosen)
    if chosen[0] is None:  # a run that began on an accelerator
        return config
    precision = from_dict(TowerPrecision, chosen[0])
    model.compute_in(precision)
    return replace(config, train=replace(train, tower_precision=precision))


def _chosen(config: RunConfig, model: DualTower, items: ItemDataset) -> dict[str, object] | None:
    train = config.train
    if config.resume:
        kept: dict[str, object] | None = json.loads((config.out / "config.json").read_text())["train"].get(
            "tower_precision"
        )
        return kept
    if train.tower_precision is not None:
        return to_dict(train.tower_precision)
    rows = range(min(ROWS, train.batch_size, len(items)))
    tokens = None
    if model.text_tower is not None:
        tokens = model.collator().tokens([items.columns.texts[row][0] for row in rows])
    measured = measure_precision(model, tokens, learns=(train.lock_text < 1, train.lock_image < 1))
    logger.info("precision: %s; measured to be fastest here, --train.precision fp32 is float32 everywhere", measured)
    return to_dict(measured)
