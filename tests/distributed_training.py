"""Run by torchrun from `test_trainer`: a few steps of the real loop in float64, without dropout and augmentation."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import factories
import torch
from accelerate import Accelerator
from processes import accelerator
from test_trainer import items, run_config

from dualtower import DualTower
from dualtower.training.building import build_trainer


def main(out: Path, image: str, *, sync_batchnorm: bool, lock_image: float) -> None:
    torch.set_num_threads(1)
    with accelerator() as ranks:
        train(out, image, ranks, sync_batchnorm=sync_batchnorm, lock_image=lock_image)


def train(out: Path, image: str, ranks: Accelerator, *, sync_batchnorm: bool, lock_image: float) -> None:
    plain = factories.config("textcnn", image, head_norm="batch" if sync_batchnorm else "none")
    torch.manual_seed(0)
    model = DualTower.create(replace(plain, text=replace(plain.text, dropout=0.0)), factories.tokenizer()).double()
    options = {"augmentation": "none", "steps": 5, "batch_size": 16 // ranks.num_processes, "optimizer": "sgd"}
    config = run_config(out, model, lr=0.05, sync_batchnorm=sync_batchnorm, ema=0.5, lock_image=lock_image, **options)
    made = build_trainer(config, model, items(), accelerator=ranks)
    made.fit()
    if ranks.is_main_process:
        average = {f"average.{name}": weight for name, weight in made.ema.module.model.state_dict().items()}
        torch.save(model.state_dict() | average, out / "model.pt")
        (out / "result.json").write_text(json.dumps({"world_size": ranks.num_processes}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--image", default="vit")
    parser.add_argument("--sync-batchnorm", action="store_true")
    parser.add_argument("--lock-image", type=float, default=0.0)
    given = parser.parse_args()
    main(given.out, given.image, sync_batchnorm=given.sync_batchnorm, lock_image=given.lock_image)
