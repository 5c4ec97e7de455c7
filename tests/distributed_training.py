"""Run by torchrun from `test_loop`: a few steps of the real loop in float64, without dropout and augmentation."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import tiny
import torch
from accelerate import Accelerator
from test_loop import products, run_config

from dualtower import DualTower
from dualtower.training.loop import Trainer


def main(out: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    plain = tiny.config("textcnn", "vit")
    torch.manual_seed(0)
    model = DualTower.create(replace(plain, text=replace(plain.text, dropout=0.0)), tiny.tokenizer()).double()
    options = {"augmentation": "none", "steps": 5, "batch_size": 16 // accelerator.num_processes, "optimizer": "sgd"}
    config = run_config(out, model, lr=0.05, **options)
    Trainer(config, model, products(), accelerator=accelerator).fit()
    if accelerator.is_main_process:
        torch.save(model.state_dict(), out / "model.pt")
        (out / "result.json").write_text(json.dumps({"world_size": accelerator.num_processes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
