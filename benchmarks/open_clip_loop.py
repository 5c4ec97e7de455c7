"""open_clip's own training command on a catalog of ours: the peer of two benchmarks."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from dualtower.data.items import ItemDataset

MODEL = "dualtower-bench"


def write_catalog(items: ItemDataset, folder: Path) -> None:
    """The rows as image files and a tab-separated table."""
    (folder / "images").mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerow(["filepath", "title"])
        for product in items:
            path = folder / "images" / f"{product.id}.jpg"
            assert isinstance(product.image, bytes)
            path.write_bytes(product.image)
            table.writerow([path, product.texts[0]])


def write_model(folder: Path, *, image: str, size: tuple[int, int], layers: int, width: int, embed_dim: int) -> None:
    """A model config: a timm image tower and a text transformer with a context of 32 tokens instead of 77."""
    config = {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "timm_model_name": image,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": list(size),
        },
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": layers},
    }
    (folder / f"{MODEL}.json").write_text(json.dumps(config))


_TRAIN = """
import sys, open_clip, torch
open_clip.add_model_config(sys.argv.pop(1))
order = getattr(torch, sys.argv.pop(1))
from open_clip_train import main as command
create = command.create_model_and_transforms

def created(*args, **options):  # its command has no option for the memory order
    model, *transforms = create(*args, **options)
    return model.to(memory_format=order), *transforms

command.create_model_and_transforms = created
command.main(sys.argv[1:])
"""


def train(folder: Path, *, channels_last: bool = False, **options: Any) -> str:
    """Run `open_clip_train` on the CPU and return its log; options are its own, with underscores."""
    order = "channels_last" if channels_last else "contiguous_format"
    options = {
        "model": MODEL,
        "train_data": folder / "train.csv",
        "dataset_type": "csv",
        "device": "cpu",
        "log_every_n_steps": 1,
        "logs": folder / "logs",
        **options,
    }
    arguments = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    result = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(folder / f"{MODEL}.json"), order, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.stdout


def samples_per_second(log: str) -> list[float]:
    """Speed of every logged step."""
    return [float(x) for x in re.findall(r", ([\d.]+)/s, ", log)]
