"""Run by torchrun from `test_run`: a recipe's smoke with slow measurements, whose processes lose patience early.

Arguments: seconds that a process waits for the others once training has ended, then seconds that the measurement takes
one process alone, then those of the recipe.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dualtower import DualTower
from dualtower.launcher import launch
from dualtower.training import trainer
from dualtower.training.config import SMOKE_ROWS

REPOSITORY = Path(__file__).parent.parent
TEST_ROWS = 2 * SMOKE_ROWS  # texts and images of the synthetic test split that a smoke run measures


def main(patience: float, measurement: float, arguments: list[str]) -> None:
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    from train_clip_style import config

    forward, fit = DualTower.forward, trainer.Trainer.fit
    ended = []

    def slow(self: DualTower, batch: Any) -> Any:
        if ended:
            time.sleep(measurement * len(batch.ids) / TEST_ROWS)
        return forward(self, batch)

    def then_impatient(self: trainer.Trainer) -> Any:
        outcome = fit(self)
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=patience))
        ended.append(True)
        return outcome

    DualTower.forward, trainer.Trainer.fit = slow, then_impatient
    out = Path(arguments[arguments.index("--out") + 1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"rank{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    launch(config, args=arguments)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
