"""Run by torchrun from `test_objective_parts`: trains an objective with parts of its own, and may be killed on the
way."""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import torch
from accelerate import Accelerator
from momentum import MomentumContrast, ShardStream, write_shards
from processes import accelerator
from test_trainer import items, run_config

from dualtower.training.batches import training_collator
from dualtower.training.building import build_loader
from dualtower.training.trainer import Trainer

STEPS = 8


def main(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with accelerator() as ranks:
        assert ranks.num_processes == given.processes
        train(given, ranks)


def train(given: argparse.Namespace, ranks: Accelerator) -> None:
    torch.manual_seed(0)
    objective = MomentumContrast(factories.model("bow", "vit").double()).double()
    options = {"steps": STEPS, "batch_size": 12 // ranks.num_processes, "ema": 0.5, "validate_every": 0.5}
    config = run_config(given.out, objective.model, checkpoint_steps=3, augmentation=given.augmentation, **options)
    config = replace(config, resume=given.resume)
    rows = items()
    made = Trainer(
        config,
        objective,
        loader(given, config, objective, ranks),
        accelerator=ranks,
        validate=lambda averaged: averaged.validate(rows, batch_size=16),
        splits={"train": rows},
    )
    if given.kill_at:
        kill(made, at_step=given.kill_at)
    outcome = made.fit()
    assert outcome.ended == "budget" and outcome.position.best is not None
    if ranks.is_main_process:
        outcome.model.save_pretrained(given.out / "model")
        ended = {"objective": objective.state_dict(), "averaged": made.ema.module.state_dict()}
        torch.save({**ended, "optimizer": made.optimizer.state_dict()}, given.out / "end.pt")


def loader(given: argparse.Namespace, config: Any, objective: MomentumContrast, ranks: Accelerator) -> Any:
    rows = items()
    if given.loader == "items":
        return build_loader(config, objective, rows, ranks)
    shards = write_shards(rows, given.out / f"shards{ranks.process_index}", count=4)
    collator = training_collator(config, objective, rows)
    size, rank = config.train.batch_size, ranks.process_index
    return ShardStream(shards, collator, batch_size=size, rank=rank, world_size=ranks.num_processes)


def kill(made: Trainer, *, at_step: int) -> None:
    step = made._step

    def then_killed(*given: Any) -> None:
        if made.position.step == at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        step(*given)

    made._step = then_killed  # type: ignore[method-assign]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--loader", choices=("items", "stream"), default="items")
    parser.add_argument("--augmentation", default="simclr")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume", action="store_true")
    main(parser.parse_args())
