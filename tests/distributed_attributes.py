"""Run by torchrun from `test_attribute_encoder`: gradients of the attribute objective on several ranks, or a training
that may be killed on the way."""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from distributed_momentum import kill
from processes import accelerator
from torch.nn.parallel import DistributedDataParallel

from dualtower import (
    AttributeEncoderConfig,
    AttributesConfig,
    DataConfig,
    DualTower,
    Item,
    ModelConfig,
    ReconstructionConfig,
    RunConfig,
    TrainConfig,
    distributed,
)
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import fit_attributes
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import rank, world_size
from dualtower.objectives.self_supervised.attributes import AttributeReconstruction
from dualtower.training.building import build_trainer
from dualtower.types import AttributeValues, Batch

KINDS = {"mug": ("kitchen", 8.0), "pan": ("kitchen", 30.0), "shoe": ("wear", 80.0), "hat": ("wear", 20.0)}
COLORS = ("red", "navy", "white")


def rows(count: int = 64, *, seed: int = 0, missing: float = 0.2) -> ItemDataset:
    """Products whose room follows from what they are, whose price nearly does, and whose color does not."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        kind = list(KINDS)[rng.integers(4)]
        room, price = KINDS[kind]
        values = {"kind": kind, "room": room, "color": COLORS[rng.integers(3)], "price": price + rng.integers(5)}
        shown = {name: (None if rng.random() < missing else value) for name, value in values.items()}
        made.append(Item(str(number), f"product {number}", (f"product {number}",), attributes=shown))
    return ItemDataset.from_rows(made)


def encoder_config(items: ItemDataset, *, dropout: float = 0.3, names: tuple[str, ...] = ()) -> ModelConfig:
    read = AttributesConfig(names or ("kind", "room", "color", "price"), width=8, dropout=dropout)
    fitted = fit_attributes(read, items.attributes, ["price"])
    encoder = AttributeEncoderConfig(fitted, hidden=32)
    return ModelConfig(text=None, image=None, embed_dim=12, attribute_encoder=encoder)


def model(items: ItemDataset, **options) -> DualTower:
    torch.manual_seed(0)
    return DualTower.create(encoder_config(items, **options), None)


def objective(made: DualTower, items: ItemDataset) -> AttributeReconstruction:
    return AttributeReconstruction(made, ReconstructionConfig(), items.attributes)


def run_config(out: Path, items: ItemDataset, **train) -> RunConfig:
    options = {"steps": 8, "batch_size": 16, "precision": "fp32", "trackers": (), "checkpoint_minutes": None}
    return RunConfig(
        model=encoder_config(items),
        data=DataConfig(workers=0),
        objective="attributes",
        train=TrainConfig(**{**options, **train}),
        out=out,
    )


def errors() -> dict[str, float]:
    """How far gradients on several ranks are from those of one process; what is missing lies unevenly."""
    items = rows(16, missing=0.6)
    alone = objective(model(items, dropout=0.0).double(), items).train()
    together = copy.deepcopy(alone)
    whole = alone.model.collator()([items[i] for i in range(16)])
    whole = replace(whole, attributes=whole.attributes._replace(numbers=whole.attributes.numbers.double()))
    with pytest.MonkeyPatch.context() as patch:  # one process on the joined batch
        patch.setattr(distributed, "world_size", lambda: 1)
        alone.loss(alone(whole, BatchRNG(0, size=16)), whole).backward()
    own = slice(rank() * 16 // world_size(), (rank() + 1) * 16 // world_size())
    part = Batch(
        whole.ids[own], whole.product_codes[own], attributes=AttributeValues(*(v[own] for v in whole.attributes))
    )
    for parameter in (together.model.logit_scale, *together.own_parameters()):
        parameter.requires_grad_(False)
    wrapped = DistributedDataParallel(together)
    together.loss(wrapped(part, BatchRNG(0, size=16)), part).backward()
    found = {}
    for (name, mine), wanted in zip(together.named_parameters(), alone.parameters(), strict=True):
        if mine.requires_grad:
            found[name] = (mine.grad - wanted.grad).abs().max().item() / (wanted.grad.abs().max().item() or 1.0)
    return found


def train(given: argparse.Namespace, ranks: Accelerator) -> None:
    items, held_out = rows(), rows(40, seed=1)
    config = run_config(given.out, items, batch_size=16 // ranks.num_processes, checkpoint_steps=3, validate_every=0.5)
    config = replace(config, resume=given.resume, train=replace(config.train, ema=0.5))
    made = build_trainer(
        config,
        model(items),
        items,
        accelerator=ranks,
        validate=lambda averaged: averaged.validate(held_out, batch_size=16),
        validation=held_out,
    )
    if given.kill_at:
        kill(made, at_step=given.kill_at)
    outcome = made.fit()
    assert outcome.ended == "budget" and outcome.position.best is not None
    if ranks.is_main_process:
        outcome.model.save_pretrained(given.out / "model")
        torch.save({"now": made.objective.state_dict(), "averaged": made.ema.module.state_dict()}, given.out / "end.pt")


def main(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with accelerator() as ranks:
        if given.out is not None:
            train(given, ranks)
            return
        report = errors()
        if ranks.is_main_process:
            print(json.dumps({"world_size": world_size(), "errors": report}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume", action="store_true")
    main(parser.parse_args())
