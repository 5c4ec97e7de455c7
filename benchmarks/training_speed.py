"""Training speed against open_clip's own loop: same image tower, picture size, text depth and width, batch, titles.

    python benchmarks/training_speed.py --source FOLDER_OF_FASHION_PRODUCTS

Both train a timm ResNet-18 on 80x80 pictures with a text transformer of 3 layers x 256, batch 256, on the same rows.
The two run in turn (A B A B ...), each in a process of its own; a figure is the median of a run's steps after the first
few, the ratio is taken pair by pair. open_clip gets the fastest of its settings that were tried first: amp_bf16 or
fp32, one or two loader workers, and a text context of 32 tokens instead of 77. Neither side keeps decoded pictures, and
neither has dropout: open_clip's text transformer knows none.

It also says where our time goes, by timing the parts of a step alone.
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

import open_clip_loop
import torch
from accelerate import Accelerator
from common import save_results

from dualtower import (
    DataConfig,
    DualTower,
    ImageSettings,
    ImageTowerConfig,
    ModelConfig,
    RunConfig,
    TextTowerConfig,
    TrainConfig,
    load_card,
    load_products,
)
from dualtower.data.augment import Draw, augment
from dualtower.data.products import Products
from dualtower.data.text import train_tokenizer
from dualtower.training.loop import Trainer

BATCH, SIDE, LAYERS, WIDTH, EMBED = 256, 80, 3, 256, 512
CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved runs of each")
    parser.add_argument("--steps", type=int, default=16, help="optimiser steps per run")
    parser.add_argument("--side", choices=["dualtower"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_dualtower(args.source, args.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Run both in turn and write the table."""
    open_clip_loop.write_catalogue(training_rows(args.source, args.steps), folder)
    open_clip_loop.write_model(folder, image="resnet18", size=(SIDE, SIDE), layers=LAYERS, width=WIDTH, embed_dim=EMBED)
    settings = [(precision, workers) for precision in ("amp_bf16", "fp32") for workers in (1, 2)]
    precision, workers = max(settings, key=lambda s: run_open_clip(folder, *s))
    ours, theirs = [], []
    for number in range(args.pairs):
        command = [sys.executable, __file__, "--source", args.source, "--steps", str(args.steps)]
        result = subprocess.run([*command, "--side", "dualtower"], check=True, stdout=subprocess.PIPE, text=True)
        ours.append(json.loads(result.stdout.splitlines()[-1]))
        theirs.append(run_open_clip(folder, precision, workers))
        print(
            f"pair {number + 1}: dualtower {ours[-1]['samples_per_s']:.0f}/s, open_clip {theirs[-1]:.0f}/s", flush=True
        )
    speeds = [o["samples_per_s"] for o in ours]
    ratios = [a / b for a, b in zip(speeds, theirs, strict=True)]
    parts = {k: statistics.median(o["parts"][k] for o in ours) for k in ours[0]["parts"]}
    rows = [
        ["dualtower (fp32)", *spread(speeds, "{:.0f}")],
        [f"open_clip ({precision}, {workers} workers)", *spread(theirs, "{:.0f}")],
        ["ratio, pair by pair", *spread(ratios, "{:.2f}")],
    ]
    shares = [[name, f"{1000 * seconds:.0f}"] for name, seconds in parts.items()]
    save_results(
        "training_speed",
        title="Training speed, samples/s",
        tables=[(["loop", "median", "range"], rows), (["part of one step of 256 rows", "ms"], shares)],
        values={"dualtower": speeds, "open_clip": theirs, "ratios": ratios, "parts_seconds": parts},
    )


def spread(values: list[float], style: str) -> tuple[str, str]:
    """Median and range as table cells."""
    low, middle, high = (style.format(f(values)) for f in (min, statistics.median, max))
    return middle, f"{low}–{high}"


def training_rows(source: str, steps: int) -> Products:
    """As many training rows as one epoch of so many steps takes."""
    products = load_products(load_card(CARD), "train", source=source, check_images=False)
    return products.select(range(BATCH * steps))


def run_open_clip(folder: Path, precision: str, workers: int) -> float:
    """Samples/s of open_clip's own training command over one epoch of the same rows."""
    log = open_clip_loop.train(
        folder, batch_size=BATCH, precision=precision, workers=workers, epochs=1, warmup=1, save_frequency=0
    )
    return statistics.median(open_clip_loop.samples_per_second(log)[4:])


def run_dualtower(source: str, steps: int) -> dict:
    """Train some steps with the library's own loop; then time the parts of a step one by one."""
    products = training_rows(source, steps)
    with tempfile.TemporaryDirectory() as out:
        config = RunConfig(
            model=ModelConfig(
                text=TextTowerConfig(name="bert", width=WIDTH, layers=LAYERS, heads=4, dropout=0.0),
                image=ImageTowerConfig(name="resnet18"),
                image_settings=ImageSettings(height=SIDE, width=SIDE),
                embed_dim=EMBED,
            ),
            data=DataConfig(workers=1, cache_mb=0),
            train=TrainConfig(steps=steps, batch_size=BATCH, precision="fp32", checkpoint_minutes=None, trackers=()),
            out=Path(out),
        )
        tokenizer = train_tokenizer([t for texts in products.texts for t in texts], vocab_size=8000)
        accelerator = Accelerator(cpu=True)
        model = DualTower.create(config.model, tokenizer)
        trainer = Trainer(config, model, products, accelerator=accelerator)
        times = [time.perf_counter()]
        step = trainer._step
        trainer._step = lambda *a: (step(*a), times.append(time.perf_counter()))  # a stop watch, nothing else
        trainer.fit()
        durations = [b - a for a, b in itertools.pairwise(times)][4:]
        return {
            "samples_per_s": BATCH / statistics.median(durations),
            "parts": time_parts(trainer, products, accelerator),
        }


def time_parts(trainer, products, accelerator) -> dict[str, float]:
    """Seconds of each part of a step, alone in the process (in training the loader works beside the step)."""
    model, collator = trainer.unwrapped, trainer.loader.collate_fn
    rows = [products[i] for i in range(BATCH)]
    parts: dict[str, list[float]] = {}

    def timed(name, function):
        begin = time.perf_counter()
        value = function()
        parts.setdefault(name, []).append(time.perf_counter() - begin)
        return value

    model.train()
    for number in range(6):
        pixels = timed("decode and resize", lambda: collator.pixels(rows))
        timed("tokenise", lambda: collator.tokens([p.texts[0] for p in rows]))
        batch = collator(rows)
        draw = Draw(number, size=BATCH)
        pixels = timed("augment", lambda p=pixels, d=draw: augment(p, "product", d))
        with accelerator.autocast():
            seen = replace(batch, pixels=pixels, tokens=None)
            image = timed("image tower, forward", lambda s=seen: model(s))
            text = timed("text tower, forward", lambda b=batch: model(replace(b, pixels=None)))
        both = replace(image, text=text.text)
        loss = timed("loss", lambda e=both, b=batch: trainer.objective.loss(e, b))
        timed("backward", loss.backward)
        timed("optimiser", trainer.optimizer.step)
        trainer.optimizer.zero_grad()
    return {name: statistics.median(seconds[2:]) for name, seconds in parts.items()}


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
