"""What a run keeps of its state between two steps: saved by the main process, restored in all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3

from dualtower.config import to_dict
from dualtower.distributed import broadcast_, from_main, world_size
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Objective
from dualtower.training.budget import Budget, say_budget
from dualtower.training.checkpoint import (
    Checkpoint,
    Position,
    latest_checkpoint,
    parse_checkpoint,
    read_best,
    read_checkpoint,
    save_best,
    save_checkpoint,
)
from dualtower.training.config import RunConfig
from dualtower.training.loader import StatefulLoader
from dualtower.training.skipped_rows import SkippedRows

__all__ = ["TrainingState"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """All that a step changes, but for the position, and the folder that it is kept in.

    All processes hold one and call the same methods; the main process alone reads and writes files, since others may
    lie on machines that do not see them.

    Attributes:
        config: The run.
        inputs: What it is made from besides its config (`run_inputs`).
        accelerator: Processes, device and gradient scaler.
        objective: What is trained, unwrapped.
        optimizer: Moves its parameters.
        ema: Averages the objective, or None.
        loader: Gives this process its batches.
        skipped_rows: Rows whose images broke on the way.
    """

    config: RunConfig
    inputs: Mapping[str, str]
    accelerator: Accelerator
    objective: Objective
    optimizer: AcceleratedOptimizer
    ema: ModelEmaV3 | None
    loader: StatefulLoader
    skipped_rows: SkippedRows

    @property
    def folder(self) -> Path:
        """Where checkpoints and the best weights are."""
        return self.config.out / "checkpoints"

    @property
    def averaged(self) -> Objective:
        """The objective with averaged weights where there are any: what is validated, and whose model is saved."""
        averaged: Objective = self.objective if self.ema is None else self.ema.module
        return averaged

    def save(self, position: Position, loader: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            position: Where the run stands.
            loader: Where this process's loader stood then.

        Raises:
            CheckpointError: The file system refused; older checkpoints are untouched.
        """
        ranks = _of_all_ranks({"rng": self._random_state(), "loader": loader})
        skipped_rows = self.skipped_rows.everywhere()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            checkpoint = Checkpoint(
                config=to_dict(self.config),
                position=position,
                model=self.objective.model.state_dict(),
                objective=self.objective.own_state(),
                optimizer=self.optimizer.state_dict(),
                ema=self.ema.module.model.state_dict() if self.ema is not None else None,
                objective_ema=self.ema.module.own_state() if self.ema is not None else {},
                scaler=scaler.state_dict() if scaler is not None else None,
                rng=[state["rng"] for state in ranks],
                loader=[state["loader"] for state in ranks],
                inputs=self.inputs,
                skipped_rows=skipped_rows,
            )
            save_checkpoint(checkpoint, self.folder, max_checkpoints=self.config.train.max_checkpoints)
        self.accelerator.wait_for_everyone()

    def restore(self, budget: Budget) -> Position:
        """Load the newest checkpoint when the config says resume; otherwise seed this process's dropout.

        Args:
            budget: Budget of the run as it goes on, for the log.

        Raises:
            CheckpointError: There is a checkpoint, but it does not fit the run.
        """
        rank = self.accelerator.process_index
        torch.manual_seed(self.config.train.seed + 1_000_003 * (rank + 1))
        if not self.config.resume:
            return Position()
        found = from_main(lambda: str(latest_checkpoint(self.folder) or "").encode()).decode()
        if not found:
            return Position()
        path = Path(found)
        checkpoint = parse_checkpoint(from_main(lambda: read_checkpoint(path)), path, self.config, self.inputs)
        self.objective.model.load_state_dict(checkpoint.model)
        self.objective.load_own_state(checkpoint.objective)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.module.model.load_state_dict(checkpoint.ema)
            self.ema.module.load_own_state(checkpoint.objective_ema)
        if self.accelerator.scaler is not None and checkpoint.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.loader.load_state_dict(checkpoint.loader[min(rank, len(checkpoint.loader) - 1)])
        if rank < len(checkpoint.rng):
            torch.set_rng_state(checkpoint.rng[rank]["cpu"])
            if "cuda" in checkpoint.rng[rank] and self.accelerator.device.type == "cuda":
                torch.cuda.set_rng_state(checkpoint.rng[rank]["cuda"], self.accelerator.device)
        logger.info("resuming from %s", path)
        self.skipped_rows.restore(checkpoint.skipped_rows)
        used = budget.progress(checkpoint.position.step, checkpoint.position.seconds)
        say_budget(checkpoint.config["train"], self.config.train, used)
        return checkpoint.position

    def save_best(self, score: float, step: int) -> None:
        """Keep the weights of the best validation so far."""
        if self.accelerator.is_main_process:
            save_best(self.averaged.model.state_dict(), self.folder, score=score, step=step)

    def best(self, *, validated: bool) -> DualTower:
        """A model of its own with the best validated weights, on the CPU and in evaluation mode.

        Args:
            validated: Whether there are any; else those of now.
        """
        trained = self.objective.model
        model = DualTower(trained.config, trained.tokenizer)
        if self.accelerator.is_main_process:
            model.load_state_dict(read_best(self.folder) if validated else self.averaged.model.state_dict())
        broadcast_(model.state_dict().values())
        return model.eval()

    def _random_state(self) -> Mapping[str, torch.Tensor]:
        """This rank's random state: dropout draws from it."""
        mine = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return mine


def _of_all_ranks(mine: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if world_size() == 1:
        return [mine]
    all_of_them: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(all_of_them, mine)
    return all_of_them
