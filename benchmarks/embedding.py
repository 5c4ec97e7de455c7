"""Embed a catalog's images: `encode_image` against the loop that people write around open_clip.

    python benchmarks/embedding.py --model runs/fashion/model --source FOLDER_OF_FASHION_PRODUCTS

The plain loop is that of open_clip's README and of sentence-transformers' `encode`, with what makes it quick: a
DataLoader (with 0, 1 and 2 workers), torchvision's resize, to-tensor and normalize, the same image tower and head under
`torch.inference_mode`, batches of 256, in both orders of memory: ``contiguous`` as timm makes its networks, and
``channels_last``. They take turns, each in a process of its own; the ratio is taken round by round, to the plain loop
that was the quickest in that round. A last line embeds a quarter of the images, to show that memory does not follow
their number (it counts the images' file, which is mapped, not read).
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import save_results, spread
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dualtower import DualTower, load_card, load_items
from dualtower.data.image_columns import ImageColumn

BATCH = 256
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--source", required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(embed(args.model, args.source, args.rows, args.side)))
        return
    ours: list[dict[str, float]] = []
    plain: dict[str, list[dict[str, float]]] = {f"{o}, {n} workers": [] for o in ORDERS for n in (0, 1, 2)}
    ratios = []
    for number in range(args.rounds):
        ours.append(measure(args, "dualtower", args.rows))
        for how, found in plain.items():
            found.append(measure(args, f"plain loop, {how}", args.rows))
        best = max(found[-1]["images_per_s"] for found in plain.values())
        ratios.append(ours[-1]["images_per_s"] / best)
        print(f"round {number + 1}: dualtower {ours[-1]['images_per_s']:.0f}/s, plain loop {best:.0f}/s", flush=True)
    quarter = measure(args, "dualtower", args.rows // 4)
    ratio = spread(ratios, to="–")
    rows = [
        row("dualtower", ours),
        *(row(f"plain loop, {how}", found) for how, found in plain.items()),
        ["ratio to the best, round by round", ratio, ""],
        row(f"dualtower, {args.rows // 4:,} images", [quarter]),
    ]
    save_results(
        "embedding",
        title=f"Embedding {args.rows:,} images",
        tables=[(["", "images/s", "peak memory"], rows)],
        values={"dualtower": ours, "plain": plain, "ratios": ratios, "quarter": quarter},
    )


def measure(args: argparse.Namespace, side: str, rows: int) -> dict[str, float]:
    """Embed in a fresh process."""
    given = ["--model", args.model, "--source", args.source, "--rows", str(rows), "--side", side]
    result = subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def row(name: str, found: list[dict[str, float]]) -> list[str]:
    """Medians as table cells."""
    speed, memory = (statistics.median(f[key] for f in found) for key in ("images_per_s", "peak_mib"))
    return [name, f"{speed:.0f}", f"{memory:.0f} MiB"]


def embed(model_folder: str, source: str, rows: int, side: str) -> dict[str, float]:
    """What one process measures."""
    model = DualTower.from_pretrained(model_folder)
    items = load_items(load_card(CARD), "train", source=source, check_images=False)
    images = items.images.select(np.arange(rows))
    model.encode_image(images.select(np.arange(BATCH)))  # the first batch chooses kernels
    begin = time.perf_counter()
    if side == "dualtower":
        found = model.encode_image(images, batch_size=BATCH)
    else:
        _, order, workers = side.split(", ")
        found = plain_loop(model, images, order=ORDERS[order], workers=int(workers.split()[0]))
    seconds = time.perf_counter() - begin
    assert found.shape == (rows, model.config.embed_dim)
    assert np.allclose(found[:8], model.encode_image(images.select(np.arange(8))), atol=0.02)  # the same work
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_s": rows / seconds, "peak_mib": peak}


class Decoded(Dataset):
    """Images as a plain loop reads them."""

    def __init__(self, images: ImageColumn, model: DualTower) -> None:
        settings = model.config.image_settings
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.Resize((settings.height, settings.width), transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(settings.mean, settings.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(self.images[index])).convert("RGB"))


@torch.inference_mode()
def plain_loop(model: DualTower, images: ImageColumn, *, order: torch.memory_format, workers: int) -> np.ndarray:
    """Batch by batch through backbone and head."""
    backbone, found = model.image_tower.backbone.to(memory_format=order), []
    for pixels in DataLoader(Decoded(images, model), batch_size=BATCH, num_workers=workers):
        features = backbone.forward_features(pixels.contiguous(memory_format=order))
        pooled = backbone.forward_head(features, pre_logits=True)
        found.append(torch.nn.functional.normalize(model.image_head(pooled), dim=-1).numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
