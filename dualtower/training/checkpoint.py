"""Checkpoints that a killed run goes on from, bit for bit.

One file holds the weights, the state of the objective, the averages of both, the optimizer, the gradient scaler, and
every rank's random state and place in the data. It is written beside its final name, synced and renamed, so a file with
the final name is complete.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from dualtower.config import differences, from_dict, to_dict
from dualtower.errors import CheckpointError
from dualtower.files import atomic_write
from dualtower.training.budget import BUDGET
from dualtower.training.config import RunConfig
from dualtower.training.inputs import check_inputs

__all__ = [
    "Checkpoint",
    "Position",
    "latest_checkpoint",
    "load_checkpoint",
    "parse_checkpoint",
    "read_best",
    "read_checkpoint",
    "save_best",
    "save_checkpoint",
]

# What may differ between a run and its continuation: but for the budget, none of it changes the weights.
_FREE = {"out", "resume", "overwrite", "evaluation"}
_FREE_WITHIN = {
    "data": {"card", "source", "on_error", "check_images", "workers", "cache_mb"},  # the rows themselves are compared
    "train": {"trackers", "max_checkpoints", "checkpoint_steps", "checkpoint_minutes", *BUDGET},
}


@dataclass(frozen=True)
class Position:
    """Where a run stands, after `step` steps.

    Attributes:
        step: Steps of the budget, each of one joined batch (or `accumulate` of them).
        skipped: Those among them that left the weights alone, since their gradients overflowed in fp16.
        seconds: Training time so far.
        best: Best validation score so far, or None before the first validation.
        stale: Validations since then.
        validated: Step of the last validation.
    """

    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    best: float | None = None
    stale: int = 0
    validated: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """All state of a run between two steps.

    Attributes:
        config: The run's, as plain values.
        position: Where it stands.
        model: Weights.
        objective: State of the objective's own parts.
        optimizer: State of the optimizer.
        ema: Averaged weights, or None.
        objective_ema: Averaged state of the objective's own parts.
        scaler: State of the gradient scaler, or None.
        rng: One random state per rank.
        loader: One state of a loader per rank.
        inputs: What the run was made from besides its config (`run_inputs`).
        skipped_rows: Rows whose images broke on the way (`SkippedRows`).
    """

    config: Mapping[str, Any]
    position: Position
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    objective: Mapping[str, torch.Tensor] = field(default_factory=dict)
    ema: Mapping[str, torch.Tensor] | None = None
    objective_ema: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scaler: Mapping[str, Any] | None = None
    rng: list[Mapping[str, torch.Tensor]] = field(default_factory=list)
    loader: list[Mapping[str, Any]] = field(default_factory=list)
    inputs: Mapping[str, str] = field(default_factory=dict)
    skipped_rows: list[tuple[str, str, str, int]] = field(default_factory=list)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, *, max_checkpoints: int) -> Path:
    """Write ``step_<n>.pt`` atomically and then drop all but the `max_checkpoints` newest.

    Raises:
        CheckpointError: The file system refused (disk full, no permission); older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{checkpoint.position.step:08d}.pt"
    parts = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    parts["position"] = to_dict(checkpoint.position)
    write_atomically(parts, path)
    for old in _steps(folder)[:-max_checkpoints]:
        old.unlink()
    return path


def write_atomically(value: Any, path: Path) -> None:
    """``torch.save`` to a temporary file beside `path`, sync, rename."""
    try:
        with atomic_write(path) as partial, partial.open("wb") as stream:
            torch.save(value, stream)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write into a RuntimeError
        raise CheckpointError(
            f"cannot write {path}: {error}. What was saved before is intact; make room and type the same "
            "command with --resume"
        ) from error


def save_best(weights: Mapping[str, torch.Tensor], folder: Path, *, score: float, step: int) -> None:
    """Write ``best.pt``: the weights of the best validation so far.

    Raises:
        CheckpointError: The file system refused; what was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically({"model": weights, "score": score, "step": step}, folder / "best.pt")


def read_best(folder: Path) -> Mapping[str, torch.Tensor]:
    """Read the weights of the best validation.

    Raises:
        CheckpointError: The file is missing or broken.
    """
    path = folder / "best.pt"
    try:
        weights: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)["model"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}, the best weights of this run, cannot be read ({error}); the newest ones are in step_*.pt"
        ) from error
    return weights


def latest_checkpoint(folder: Path) -> Path | None:
    """Newest complete step checkpoint in a folder, or None."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def load_checkpoint(path: Path, config: RunConfig, inputs: Mapping[str, str] | None = None) -> Checkpoint:
    """Read a checkpoint that belongs to `config` and `inputs`.

    Raises:
        CheckpointError: The file is broken, or it was written under a config that trains differently, or from other
            inputs.
    """
    return parse_checkpoint(read_checkpoint(path), path, config, inputs)


def read_checkpoint(path: Path) -> bytes:
    """Read the bytes of a checkpoint.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to go on from an older one") from error


def parse_checkpoint(
    content: bytes, path: Path, config: RunConfig, inputs: Mapping[str, str] | None = None
) -> Checkpoint:
    """Make a checkpoint of its bytes, as `load_checkpoint` does; `path` is for messages."""
    try:
        parts = _with_loader(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        position = from_dict(Position, parts.pop("position"), where=f"{path}: position")
        checkpoint = Checkpoint(position=position, **parts)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is not a complete checkpoint ({error}); delete it to go on from an older one"
        ) from error
    check_inputs(checkpoint.inputs, inputs or {}, path=path, lenient=config.data.on_error == "skip")
    changed = differences(_binding(checkpoint.config), _binding(to_dict(config)))
    if changed:
        raise CheckpointError(
            f"{path} belongs to another config ({'; '.join(changed)}); "
            "resume with the settings in the run's config.json, or choose another --out"
        )
    return checkpoint


def _with_loader(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint; those of an older version kept the place in the data with the position."""
    if "loader" in parts:
        return parts
    position = dict(parts["position"])
    place = {"epoch": position.pop("epoch"), "batch": position.pop("batch")}
    return {**parts, "position": position, "loader": [place] * max(1, len(parts.get("rng", [])))}


def _binding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that must not change within one run."""
    binding = {key: value for key, value in config.items() if key not in _FREE}
    for section, free in _FREE_WITHIN.items():
        binding[section] = {k: v for k, v in config[section].items() if k not in free}
    return binding


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", p.name))
