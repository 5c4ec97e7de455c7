"""Training speed against open_clip's own loop: same image tower, picture size, text depth and width, batch, titles.

    python benchmarks/training_speed.py --source FOLDER_OF_FASHION_PRODUCTS

Both train a timm ResNet-18 on 80x80 pictures with a text transformer of 3 layers x 256, batch 256, in bf16, on the same
rows. The two run in turn (A B A B ...), each in a process of its own; a figure is the median of a run's steps after the
first few, the ratio is taken pair by pair. open_clip gets its fastest settings that we know of: precision amp_bf16, a
text context of 32 tokens instead of 77, and the better of several worker counts.

It also says where our time goes, by timing the parts of a step alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import save_results

BATCH, SIDE, LAYERS, WIDTH, EMBED = 256, 80, 3, 256, 512
CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved runs of each")
    parser.add_argument("--steps", type=int, default=16, help="optimiser steps per run")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="open_clip's worker counts to try")
    parser.add_argument("--side", choices=["dualtower"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_dualtower(args.source, args.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Run both in turn and write the table."""
    write_for_open_clip(args.source, folder, rows=BATCH * args.steps)
    workers = max(args.workers, key=lambda n: run_open_clip(folder, n)) if len(args.workers) > 1 else args.workers[0]
    ours, theirs = [], []
    for number in range(args.pairs):
        command = [sys.executable, __file__, "--source", args.source, "--steps", str(args.steps)]
        result = subprocess.run([*command, "--side", "dualtower"], check=True, stdout=subprocess.PIPE, text=True)
        ours.append(json.loads(result.stdout.splitlines()[-1]))
        theirs.append(run_open_clip(folder, workers))
        print(
            f"pair {number + 1}: dualtower {ours[-1]['samples_per_s']:.0f}/s, open_clip {theirs[-1]:.0f}/s", flush=True
        )
    speeds = [o["samples_per_s"] for o in ours]
    ratios = [a / b for a, b in zip(speeds, theirs, strict=True)]
    parts = {k: statistics.median(o["parts"][k] for o in ours) for k in ours[0]["parts"]}
    rows = [
        ["dualtower", f"{statistics.median(speeds):.0f}", f"{min(speeds):.0f}–{max(speeds):.0f}"],
        [f"open_clip ({workers} workers)", f"{statistics.median(theirs):.0f}", f"{min(theirs):.0f}–{max(theirs):.0f}"],
        ["ratio, pair by pair", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}"],
    ]
    shares = [[name, f"{1000 * seconds:.0f}"] for name, seconds in parts.items()]
    save_results(
        "training_speed",
        title="Training speed, samples/s",
        tables=[(["loop", "median", "range"], rows), (["part of one step of 256 rows", "ms"], shares)],
        values={"dualtower": speeds, "open_clip": theirs, "ratios": ratios, "parts_seconds": parts},
    )


def run_dualtower(source: str, steps: int) -> dict:
    """Train some steps with the library's own loop; then time the parts of a step one by one."""
    from accelerate import Accelerator

    from dualtower import (
        DataConfig,
        ImageSettings,
        ImageTowerConfig,
        ModelConfig,
        RunConfig,
        TextTowerConfig,
        TrainConfig,
    )
    from dualtower.data.cards import load_card
    from dualtower.data.products import load_products
    from dualtower.data.text import train_tokenizer
    from dualtower.model import DualTower
    from dualtower.training.loop import Trainer

    products = load_products(load_card(CARD), "train", source=source, check_images=False).select(range(BATCH * steps))
    with tempfile.TemporaryDirectory() as out:
        config = RunConfig(
            model=ModelConfig(
                text=TextTowerConfig(name="bert", width=WIDTH, layers=LAYERS, heads=4),
                image=ImageTowerConfig(name="resnet18"),
                image_settings=ImageSettings(height=SIDE, width=SIDE),
                embed_dim=EMBED,
            ),
            data=DataConfig(workers=1, cache_mb=0),
            train=TrainConfig(steps=steps, batch_size=BATCH, precision="bf16", checkpoint_minutes=None, trackers=()),
            out=Path(out),
        )
        tokenizer = train_tokenizer([t for texts in products.texts for t in texts], vocab_size=8000)
        accelerator = Accelerator(mixed_precision="bf16")
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
    from dualtower.data.augment import Draw, augment

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
        shared = {"scale": image.scale, "bias": image.bias, "products": batch.products}
        loss = timed("loss", lambda i=image, t=text, kw=shared: trainer.loss(i.image, t.text, **kw))
        timed("backward", loss.backward)
        timed("optimiser", trainer.optimizer.step)
        trainer.optimizer.zero_grad()
    return {name: statistics.median(seconds[2:]) for name, seconds in parts.items()}


def write_for_open_clip(source: str, folder: Path, *, rows: int) -> None:
    """The same rows as picture files and a CSV, and the same towers as an open_clip model config."""
    from dualtower.data.cards import load_card
    from dualtower.data.products import load_products

    products = load_products(load_card(CARD), "train", source=source, check_images=False).select(range(rows))
    (folder / "pictures").mkdir()
    with (folder / "train.csv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerow(["filepath", "title"])
        for product in products:
            path = folder / "pictures" / f"{product.id}.jpg"
            path.write_bytes(product.image)
            table.writerow([path, product.texts[0]])
    config = {
        "embed_dim": EMBED,
        "vision_cfg": {"timm_model_name": "resnet18", "timm_model_pretrained": False, "timm_pool": "avg",
                       "timm_proj": "linear", "image_size": SIDE},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": LAYERS},
    }  # fmt: skip
    (folder / "open-clip-bench.json").write_text(json.dumps(config))


_OPEN_CLIP = """
import sys, open_clip
open_clip.add_model_config(sys.argv.pop(1))
from open_clip_train.main import main
main(sys.argv[1:])
"""


def run_open_clip(folder: Path, workers: int) -> float:
    """Samples/s of open_clip's own training command over one epoch of the same rows."""
    options = {
        "model": "open-clip-bench", "train-data": folder / "train.csv", "dataset-type": "csv", "batch-size": BATCH,
        "precision": "amp_bf16", "workers": workers, "epochs": 1, "device": "cpu", "log-every-n-steps": 1, "warmup": 1,
        "logs": folder / "logs", "save-frequency": 0,
    }  # fmt: skip
    arguments = [str(x) for key, value in options.items() for x in (f"--{key}", value)]
    result = subprocess.run(
        [sys.executable, "-c", _OPEN_CLIP, str(folder / "open-clip-bench.json"), *arguments],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    speeds = [float(x) for x in re.findall(r", ([\d.]+)/s, ", result.stdout)]
    return statistics.median(speeds[4:])


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
