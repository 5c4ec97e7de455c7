"""Speed of self-supervised training against lightly's own loop: same timm backbone, image size, batch and views.

    pip install lightly
    python benchmarks/pretrain_speed.py --source FOLDER_OF_FASHION_PRODUCTS

SimCLR with the network of recipes/pretrain_simclr.py on 80x60 images, two views of 256 images a step. Both run in
turn, each in a process of its own; a figure is the median of a run's steps after the first few, the ratio is taken
pair by pair. lightly's loop has its best settings on the machine: bf16 or fp32, channels_last or not, then no loader
worker, one or two. dualtower has those of its recipe, its images decoded anew (`--data.cache-mb 0`), as lightly's are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from common import counted, save_results, spread

from dualtower import load_card, load_items
from dualtower.data.items import ItemDataset

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

BATCH, SIZE = 256, (80, 60)
CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
FIRST = 3  # steps that are not counted
TRIAL = FIRST + 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved runs of each")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per run")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = json.loads(args.side)
        print(json.dumps({"dualtower": run_dualtower, "lightly": run_lightly}[side.pop("name")](args.source, **side)))
        return
    best, tried = best_of_lightly(args.source)
    ours, theirs = [], []
    for number in range(args.pairs):
        ours.append(apart(args.source, "dualtower", steps=args.steps))
        theirs.append(apart(args.source, "lightly", steps=args.steps, **best))
        print(f"pair {number + 1}: dualtower {ours[-1]:.0f}, lightly {theirs[-1]:.0f} images/s", flush=True)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    rows = [
        ["dualtower", spread(ours, 0)],
        [f"lightly ({named(best)})", spread(theirs, 0)],
        ["ratio, pair by pair", spread(ratios)],
    ]
    notes = (
        f"Median and range of {counted(len(ratios), 'pair')} of runs of {args.steps} steps. dualtower trains on "
        f"{statistics.median(ratios):.2f} times as many images per second as lightly's loop at the fastest of "
        f"{len(tried)} settings."
    )
    save_results(
        "pretrain_speed",
        title="Self-supervised training, images/s",
        tables=[(["loop", "images/s, two views of each"], rows)],
        values={
            "dualtower": ours,
            "lightly": theirs,
            "ratios": ratios,
            "lightly_settings": tried,
            "lightly_best": best,
        },
        notes=notes,
    )


def best_of_lightly(source: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The fastest settings on this machine, and what all that were tried did."""
    tried: dict[str, float] = {}

    def speed(settings: dict[str, Any]) -> float:
        tried[named(settings)] = apart(source, "lightly", steps=TRIAL, **settings)
        print(f"lightly, {named(settings)}: {tried[named(settings)]:.0f} images/s", flush=True)
        return tried[named(settings)]

    computing = [
        {"bf16": bf16, "channels_last": last, "workers": 1} for bf16 in (True, False) for last in (False, True)
    ]
    best = max(computing, key=speed)
    return max([best, *({**best, "workers": n} for n in (0, 2))], key=lambda s: tried.get(named(s)) or speed(s)), tried


def named(settings: dict[str, Any]) -> str:
    """Settings in words."""
    words = ("bf16" if settings["bf16"] else "fp32", "channels_last" if settings["channels_last"] else "contiguous")
    return f"{', '.join(words)}, {counted(settings['workers'], 'worker')}"


def apart(source: str, name: str, **settings: Any) -> float:
    """Do one side's work in a process of its own."""
    side = json.dumps({"name": name, **settings})
    command = [sys.executable, __file__, "--source", source, "--side", side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def training_rows(source: str, steps: int) -> ItemDataset:
    """As many training rows as one epoch of so many steps takes."""
    return load_items(load_card(CARD), "train", source=source, check_images=False).select(range(BATCH * steps))


def run_lightly(source: str, *, steps: int, **settings: Any) -> float:
    """Images/s of lightly's loop."""
    import lightly_loop
    from pretrain_simclr import config

    tower = config().model.image
    assert tower is not None
    from dualtower.models.towers.image import _as_timm

    backbone = lightly_loop.fresh(tower.name, {key: _as_timm(value) for key, value in tower.options.items()})
    rows = training_rows(source, steps + 1)
    _, seconds = lightly_loop.train(
        rows, backbone, size=SIZE, batch_size=BATCH, temperature=0.2, steps=steps, **settings
    )
    return BATCH / statistics.median(seconds[FIRST:])


def run_dualtower(source: str, *, steps: int) -> float:
    """Images/s of the recipe's own loop."""
    from pretrain_simclr import config

    from dualtower.training.building import build_model, build_trainer
    from dualtower.training.precision import autocast_precision, with_tower_precision

    rows, whole = training_rows(source, steps), config()
    with tempfile.TemporaryDirectory() as out:
        train = replace(whole.train, minutes=None, steps=steps, checkpoint_minutes=None, trackers=())
        run = replace(whole, train=train, data=replace(whole.data, cache_mb=0), out=Path(out))
        accelerator = Accelerator(cpu=True, mixed_precision=autocast_precision(train))
        model = build_model(run, rows)
        run = with_tower_precision(replace(run, model=model.config), model, rows, accelerator)
        trainer = build_trainer(run, model, rows, accelerator=accelerator)
        times, step = [time.perf_counter()], trainer._step
        trainer._step = lambda *a: (step(*a), times.append(time.perf_counter()))  # a stop watch, nothing else
        trainer.fit()
    return BATCH / statistics.median([b - a for a, b in itertools.pairwise(times)][FIRST:])


if __name__ == "__main__":
    main()
