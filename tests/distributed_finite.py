"""Run by torchrun from `test_finite`: one rank of two computes a gradient, or a loss, that is not finite."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import factories
import torch
from accelerate import Accelerator
from processes import accelerator
from test_finite import poison_gradient
from test_trainer import items, run_config

from dualtower.errors import NonFiniteLoss
from dualtower.training.building import build_trainer


def main(out: Path, ruined: str) -> None:
    torch.set_num_threads(1)
    with accelerator() as ranks:
        told = train(out, ruined, ranks) | {"world_size": ranks.num_processes}
        (out / f"rank{ranks.process_index}.json").write_text(json.dumps(told))


def train(out: Path, ruined: str, ranks: Accelerator) -> dict[str, Any]:
    rank = ranks.process_index
    model = factories.model("textcnn", "vit")
    config = run_config(out, model, steps=6, batch_size=8)
    made = build_trainer(config, model, items(), accelerator=ranks)
    if rank == 1 and ruined == "gradient":
        poison_gradient(made, torch.nan, at_step=3)
    if rank == 1 and ruined == "loss":  # the gradient stays finite: only the number is broken
        loss = made.objective.loss

        def broken(outputs: Any, batch: Any) -> torch.Tensor:
            value = loss(outputs, batch)
            return value + torch.inf if made.position.step == 3 else value

        made.objective.loss = broken  # type: ignore[method-assign]
    error = ""
    try:
        made.fit()
    except NonFiniteLoss as raised:
        error = str(raised)
    finite = all(bool(torch.isfinite(w).all()) for w in made.unwrapped.state_dict().values())
    return {"error": error, "finite": finite, "step": made.position.step}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
