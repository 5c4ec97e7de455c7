"""Training speed against open_clip's own loop: same image tower, image size, text depth and width, batch, titles.

    python benchmarks/training_speed.py --source FOLDER_OF_FASHION_PRODUCTS

Both train a timm ResNet-18 on 80x80 images with a text transformer of 3 layers x 256, batch 256, on the same rows.
The two run in turn (A B A B ...), each in a process of its own; a figure is the median of a run's steps after the first
few, the ratio is taken pair by pair. Each side has its best settings on the machine: open_clip the fastest of those
that are tried first (amp_bf16 or fp32, channels_last or not, then one loader worker or two), with a text context of 32
tokens instead of 77; dualtower what `precision auto` measures, with one worker or two. Neither side keeps decoded
images, and neither has dropout: open_clip's text transformer knows none.

The limit of each is what its bare towers do, forwards and backwards on a batch that is there already. It also says
where our time goes, by timing the parts of a step alone. It takes some eight minutes on two cores.
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip_loop
import torch
from accelerate import Accelerator
from common import counted, save_results, spread

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
    load_items,
)
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG, augment
from dualtower.data.transforms.tokenizer import train_tokenizer
from dualtower.training.building import build_trainer
from dualtower.training.precision import autocast_precision, with_tower_precision

BATCH, SIDE, LAYERS, WIDTH, EMBED = 256, 80, 3, 256, 512
CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
FIRST = 3  # steps that are not counted: loaders start, kernels are chosen
TRIAL = FIRST + 3  # steps of a trial of settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved runs of each")
    parser.add_argument("--steps", type=int, default=14, help="optimizer steps per run")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = json.loads(args.side)
        work = {"dualtower": run_dualtower, "bare open_clip": bare_open_clip}[side.pop("name")]
        print(json.dumps(work(**side)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Choose the settings of both, run both in turn and write the table."""
    for steps, name in ((TRIAL, "trial"), (args.steps, "whole")):
        open_clip_loop.write_catalog(training_rows(args.source, steps), folder / name)
        open_clip_loop.write_model(
            folder / name, image="resnet18", size=(SIDE, SIDE), layers=LAYERS, width=WIDTH, embed_dim=EMBED
        )
    theirs_best, tried = best_of_open_clip(folder / "trial")
    trials = [apart("dualtower", source=args.source, steps=TRIAL, workers=workers) for workers in (1, 2)]
    workers = 1 + (trials[1]["samples_per_s"] > trials[0]["samples_per_s"])
    ours, theirs = [], []
    for number in range(args.pairs):
        last = number == args.pairs - 1
        ours.append(apart("dualtower", source=args.source, steps=args.steps, workers=workers, parts=last))
        theirs.append(run_open_clip(folder / "whole", **theirs_best))
        say(f"pair {number + 1}: dualtower {ours[-1]['samples_per_s']:.0f}/s, open_clip {theirs[-1]:.0f}/s")
    settings = {key: theirs_best[key] for key in ("precision", "channels_last")}
    their_limit = apart("bare open_clip", folder=str(folder / "whole"), **settings)["samples_per_s"]
    report(ours, theirs, workers=workers, theirs_best=theirs_best, tried=tried, their_limit=their_limit)


def best_of_open_clip(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The fastest settings on this machine, and what all that were tried did."""
    tried: dict[str, float] = {}

    def speed(settings: dict[str, Any]) -> float:
        tried[named(settings)] = run_open_clip(folder, **settings)
        say(f"open_clip, {named(settings)}: {tried[named(settings)]:.0f}/s")
        return tried[named(settings)]

    orders = [
        {"precision": precision, "channels_last": last, "workers": 1}
        for precision in ("amp_bf16", "fp32")
        for last in (False, True)
    ]
    best = max(orders, key=speed)
    more = {**best, "workers": 2}
    return (more if speed(more) > tried[named(best)] else best), tried


def named(settings: dict[str, Any]) -> str:
    """Settings in words."""
    order = "channels_last" if settings["channels_last"] else "contiguous"
    return f"{settings['precision']}, {order}, {counted(settings['workers'], 'worker')}"


def report(
    ours: list[dict[str, Any]],
    theirs: list[float],
    *,
    workers: int,
    theirs_best: dict[str, Any],
    tried: dict[str, float],
    their_limit: float,
) -> None:
    """Write tables and words."""
    speeds, parts = [run["samples_per_s"] for run in ours], ours[-1]["parts"]
    limits = [run["limit"] for run in ours if run["limit"]]
    ratios = [a / b for a, b in zip(speeds, theirs, strict=True)]
    near, their_near = statistics.median(speeds) / limits[-1], statistics.median(theirs) / their_limit
    rows = [
        [f"dualtower ({ours[-1]['precision']}, {counted(workers, 'worker')})", spread(speeds, 0), f"{limits[-1]:.0f}"],
        [f"open_clip ({named(theirs_best)})", spread(theirs, 0), f"{their_limit:.0f}"],
        ["ratio, pair by pair", spread(ratios), f"{limits[-1] / their_limit:.2f}"],
    ]
    chosen = {run["precision"] for run in ours}
    differing = f" Its runs chose differently: {'; '.join(sorted(chosen))}." if len(chosen) > 1 else ""
    notes = (
        f"Median and range of {counted(len(ratios), 'pair')} of runs. dualtower trains {statistics.median(ratios):.2f} "
        f"times as fast as open_clip's loop at the fastest of {len(tried)} settings. Of what the bare towers of each "
        f"do, forwards and backwards on a batch that is there already, dualtower reaches {near:.0%} and open_clip "
        f"{their_near:.0%}. What dualtower computes in was measured at the start of each run.{differing}"
    )
    shares = [[name, f"{1000 * seconds:.0f}"] for name, seconds in parts.items()]
    save_results(
        "training_speed",
        title="Training speed, samples/s",
        tables=[
            (["loop", "samples/s", "bare towers"], rows),
            ([f"part of one step of {BATCH} rows", "ms"], shares),
        ],
        values={
            "dualtower": speeds,
            "open_clip": theirs,
            "ratios": ratios,
            "precision": [run["precision"] for run in ours],
            "bare_towers": {"dualtower": limits[-1], "open_clip": their_limit},
            "open_clip_settings": tried,
            "parts_seconds": parts,
        },
        notes=notes,
    )


def say(text: str) -> None:
    print(text, flush=True)


def apart(name: str, **settings: Any) -> dict[str, Any]:
    """Do one side's work in a process of its own."""
    command = [sys.executable, __file__, "--source", "-", "--side", json.dumps({"name": name, **settings})]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def training_rows(source: str, steps: int) -> ItemDataset:
    """As many training rows as one epoch of so many steps takes."""
    items = load_items(load_card(CARD), "train", source=source, check_images=False)
    return items.select(range(BATCH * steps))


def run_open_clip(folder: Path, *, precision: str, channels_last: bool, workers: int) -> float:
    """Samples/s of open_clip's own training command over one epoch of the same rows."""
    log = open_clip_loop.train(
        folder,
        channels_last=channels_last,
        batch_size=BATCH,
        precision=precision,
        workers=workers,
        epochs=1,
        warmup=1,
        save_frequency=0,
    )
    return statistics.median(open_clip_loop.samples_per_second(log)[FIRST:])


def run_dualtower(source: str, steps: int, workers: int, parts: bool = False) -> dict[str, Any]:
    """Train some steps with the library's own loop; then, if asked to, time its bare towers and the parts of a step."""
    items = training_rows(source, steps)
    with tempfile.TemporaryDirectory() as out:
        config = RunConfig(
            model=ModelConfig(
                text=TextTowerConfig(name="bert", width=WIDTH, layers=LAYERS, heads=4, dropout=0.0),
                image=ImageTowerConfig(name="resnet18"),
                image_settings=ImageSettings(height=SIDE, width=SIDE),
                embed_dim=EMBED,
            ),
            data=DataConfig(workers=workers, cache_mb=0),
            train=TrainConfig(steps=steps, batch_size=BATCH, checkpoint_minutes=None, trackers=()),
            out=Path(out),
        )
        tokenizer = train_tokenizer([t for texts in items.texts for t in texts], vocab_size=8000)
        accelerator = Accelerator(cpu=True, mixed_precision=autocast_precision(config.train))
        model = DualTower.create(config.model, tokenizer)
        config = with_tower_precision(config, model, items, accelerator)
        trainer = build_trainer(config, model, items, accelerator=accelerator)
        times = [time.perf_counter()]
        step = trainer._step
        trainer._step = lambda *a: (step(*a), times.append(time.perf_counter()))  # a stop watch, nothing else
        trainer.fit()
        durations = [b - a for a, b in itertools.pairwise(times)][FIRST:]
        model.train()
        batch = trainer.loader.loader.collate_fn([items[i] for i in range(BATCH)])
        limit = (
            bare(lambda: model.image_features(batch.pixels).pooled, lambda: model.text_features(batch.tokens).pooled)
            if parts
            else 0.0
        )
        return {
            "samples_per_s": BATCH / statistics.median(durations),
            "precision": str(config.train.tower_precision or accelerator.mixed_precision),
            "limit": limit,
            "parts": time_parts(trainer, items, accelerator) if parts else {},
        }


def bare_open_clip(folder: str, precision: str, channels_last: bool) -> dict[str, float]:
    """Samples/s of open_clip's towers alone, in the settings of its loop."""
    import open_clip

    open_clip.add_model_config(Path(folder) / f"{open_clip_loop.MODEL}.json")
    model = open_clip.create_model(open_clip_loop.MODEL).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    pixels = torch.rand(BATCH, 3, SIDE, SIDE)
    texts = open_clip.get_tokenizer(open_clip_loop.MODEL)(["blue striped shirt"] * BATCH)
    enabled = precision == "amp_bf16"

    def under_autocast(tower: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return tower(inputs)

    speed = bare(lambda: under_autocast(model.encode_image, pixels), lambda: under_autocast(model.encode_text, texts))
    return {"samples_per_s": speed}


def bare(*towers: Callable[[], torch.Tensor], rounds: int = 5) -> float:
    """Samples/s through towers, forwards and backwards."""
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for tower in towers:
            tower().float().sum().backward()
        seconds.append(time.perf_counter() - begin)
    return BATCH / statistics.median(seconds[2:])


def time_parts(trainer, items, accelerator) -> dict[str, float]:
    """Seconds of each part of a step, alone in the process (in training the loader works beside the step)."""
    model, collator = trainer.unwrapped, trainer.loader.loader.collate_fn.collator
    rows = [items[i] for i in range(BATCH)]
    parts: dict[str, list[float]] = {}

    def timed(name, function):
        begin = time.perf_counter()
        value = function()
        parts.setdefault(name, []).append(time.perf_counter() - begin)
        return value

    model.train()
    for number in range(6):
        pixels = timed("decode and resize", lambda: collator.pixels(rows))
        timed("tokenize", lambda: collator.tokens([p.texts[0] for p in rows]))
        batch = collator(rows)
        draw = BatchRNG(number, size=BATCH)
        pixels = timed("augment", lambda p=pixels, d=draw: augment(p, "product", d))
        with accelerator.autocast():
            seen = replace(batch, pixels=pixels, tokens=None)
            image = timed("image tower, forward", lambda s=seen: model(s))
            text = timed("text tower, forward", lambda b=batch: model(replace(b, pixels=None)))
        both = replace(image, text=text.text)
        loss = timed("loss", lambda e=both, b=batch: trainer.objective.loss(e, b))
        timed("backward", loss.backward)
        timed("optimizer", trainer.optimizer.step)
        trainer.optimizer.zero_grad()
    return {name: statistics.median(seconds[2:]) for name, seconds in parts.items()}


if __name__ == "__main__":
    main()
