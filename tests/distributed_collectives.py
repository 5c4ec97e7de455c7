"""Run by torchrun from `test_exchanges`: what two ranks of the real loop exchange in a step, and unequal batches."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import torch
from processes import accelerator
from test_trainer import items, run_config
from torch.profiler import ProfilerActivity, profile

from dualtower.errors import ConfigError
from dualtower.training.building import build_trainer
from dualtower.training.trainer import Trainer, _Group

STEPS, WARM = 7, 3  # first steps rebuild DDP's buckets and compare shapes


def exchanges(made: Trainer) -> dict[str, float]:
    """Exchanges per step by name, DistributedDataParallel's own among them."""
    step = made._step
    watch = profile(activities=[ProfilerActivity.CPU])

    def watched(group: _Group, progress: float) -> None:
        step(group, progress)
        if made.position.step == WARM:
            watch.start()
        if made.position.step == STEPS:
            watch.stop()

    made._step = watched  # type: ignore[method-assign]
    made.fit()
    counts = Counter(event.name for event in watch.events() if event.name.startswith("gloo:"))
    return {name: count / (STEPS - WARM) for name, count in counts.items()}


def unequal(made: Trainer, rank: int) -> str:
    """What is said when one rank's batch is a row short."""
    groups = made._groups

    def short() -> Any:
        for number, group in enumerate(groups()):
            if number == 2 and rank == 1:
                batch = group.batches[0]
                batch = replace(
                    batch, ids=batch.ids[1:], **{n: getattr(batch, n)[1:] for n in ("product_codes", "pixels")}
                )
                group = replace(group, batches=[batch])
            yield group

    made._groups = short  # type: ignore[method-assign]
    try:
        made.fit()
    except ConfigError as error:
        return str(error)
    return ""


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with accelerator() as ranks:
        told: dict[str, Any] = {"world_size": ranks.num_processes}
        for case in ("exchanges", "unequal"):
            model = factories.model("bow", "gernet", head_norm="batch")
            config = run_config(out / case, model, steps=STEPS, batch_size=8)
            made = build_trainer(config, model, items(), accelerator=ranks)
            told[case] = exchanges(made) if case == "exchanges" else unequal(made, ranks.process_index)
            del made
        (out / f"rank{ranks.process_index}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
