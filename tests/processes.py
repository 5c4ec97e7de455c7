"""Real processes of one training: how the tests start them, and how the scripts that they run end."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import factories
from accelerate import Accelerator

__all__ = ["RECIPE", "SMALL_RUN", "SMALL_SPLITS", "accelerator", "torchrun"]

REPOSITORY = Path(__file__).parent.parent
RECIPE = REPOSITORY / "recipes" / "train_clip_style.py"

SMALL_RUN = [
    "--smoke",
    *("--train.cpu-threads", "1"),  # as many as there are cores would wait for each other beside another test
    "--train.trackers",
    *("--evaluation.bootstrap", "20"),
    *("--model.image.options", json.dumps(factories.IMAGE["gernet"].options)),
    *("--model.text.width", "32", "--model.embed-dim", "32"),
]
"""The main recipe with narrow towers: for what is not about how well or how fast it learns."""
SMALL_SPLITS = ["--data.train-split", "test", "--evaluation.split", "validation"]
"""Half of the synthetic catalog, 576 and 192 rows: to draw all of it takes longer than some steps on it."""


def torchrun(
    *command: str | Path, processes: int = 2, timeout: float = 300, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script and its arguments (or ``-m module``) as some ranks; fails with what they said.

    Args:
        command: What comes after torchrun's own options.
        processes: How many ranks, with one thread each.
        timeout: Seconds.
        env: Set beside the present environment.
    """
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(env or {})}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, *map(str, command)], env=env, text=True, capture_output=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return done


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """An accelerator on this rank's CPU, whose process group ends before the interpreter does: else exit may abort."""
    made = Accelerator(cpu=True)
    yield made
    made.wait_for_everyone()
    made.free_memory()
    gc.collect()
    made.end_training()
