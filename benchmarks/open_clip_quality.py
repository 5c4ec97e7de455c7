"""open_clip's recall after the same minutes of training on the same machine, by the same protocol.

    python benchmarks/open_clip_quality.py --source FOLDER_OF_FASHION_PRODUCTS --minutes 10

open_clip trains with its own command from scratch on the train rows: a timm image tower, a text transformer of 2
layers x 256 with a context of 32 tokens, batch 256, its default optimizer with a learning rate of 1e-3, warm-up and
cosine. Its speed is measured first, so that its schedule ends with the budget; the faster of its precisions is taken.
Recall is then measured by dualtower's evaluation: KAGL queries against the whole card.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import open_clip_loop
import torch
from common import counted, ranked_sizes, save_results
from PIL import Image
from torch.nn import functional as F

from dualtower import evaluate, load_card, load_items
from dualtower.data.transforms.images import open_image
from dualtower.evaluation import load_qrels
from dualtower.evaluation.reports.report import format_interval

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
BATCH = 256
LAYERS, WIDTH, RATE = 2, 256, 1e-3


class OpenClip:
    """An open_clip model as `evaluate` wants one."""

    config = SimpleNamespace(similarity="cosine")
    fingerprint = "open_clip"

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        open_clip.add_model_config(folder / f"{open_clip_loop.MODEL}.json")
        self.model, _, self.transform = open_clip.create_model_and_transforms(
            open_clip_loop.MODEL, pretrained=str(checkpoint)
        )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(open_clip_loop.MODEL)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        parts = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        return torch.cat([F.normalize(self.model.encode_text(self.tokenizer(part)), dim=1) for part in parts]).numpy()

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Any], *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        def pixels(image: Any) -> torch.Tensor:
            opened: Image.Image = open_image(image)
            return self.transform(opened)

        embedded = []
        for start in range(0, len(images), batch_size):
            batch = torch.stack([pixels(images[i]) for i in range(start, min(start + batch_size, len(images)))])
            embedded.append(F.normalize(self.model.encode_image(batch), dim=1))
        return torch.cat(embedded).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products and kagl_text_to_image.json")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--image", default="resnet18", help="timm model of the image tower")
    parser.add_argument("--size", type=int, nargs=2, default=(80, 80), metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = load_items(load_card(CARD), "train", source=args.source, check_images=False)
        open_clip_loop.write_catalog(items, folder)
        open_clip_loop.write_model(
            folder, image=args.image, size=tuple(args.size), layers=LAYERS, width=WIDTH, embed_dim=256
        )
        report, told = train_and_measure(folder, args.source, args.minutes, len(items))
    rows = [
        [direction, *(format_interval(m, figures[m]) for m in ("recall@1", "recall@10", "mrr@10"))]
        for direction, figures in report.metrics.items()
    ]
    save_results(
        f"open_clip_{args.image}_{args.minutes:g}_minutes",
        title=f"open_clip, {args.image}, {args.minutes:g} minutes",
        tables=[(["direction", "recall@1", "recall@10", "MRR@10"], rows)],
        values={**told, **report.to_dict()},
        notes=f"{words(args.image, told)} {ranked_sizes(report.protocol)}",
    )


def words(image: str, told: Mapping[str, Any]) -> str:
    """What was trained, and for how long it really was."""
    return (
        f"open_clip's own loop, from scratch: {image} and a text transformer of {LAYERS} layers x {WIDTH}, "
        f"{told['precision']}, AdamW at a rate of {RATE:g} that was not searched for, "
        f"{counted(told['epochs'], 'epoch')} of {told['rows per epoch']:,} rows in {told['minutes']} minutes."
    )


def train_and_measure(folder: Path, source: str, minutes: float, rows: int) -> tuple[Any, dict[str, Any]]:
    """Fit the number of rows to the budget (open_clip counts whole epochs), train, evaluate."""
    table = (folder / "train.csv").read_text().splitlines(keepends=True)
    speeds = {p: speed(folder, table, p) for p in ("amp_bf16", "fp32")}
    precision = max(speeds, key=lambda p: speeds[p])
    samples = speeds[precision] * minutes * 60
    epochs = max(1, math.ceil(samples / rows))
    # The last epoch would overshoot: each epoch takes the share of the rows that fits exactly, never more than all.
    share = int(samples / epochs)
    (folder / "train.csv").write_text("".join(table[: share + 1]))
    begin = time.monotonic()
    open_clip_loop.train(
        folder, name="run", batch_size=BATCH, precision=precision, workers=1, epochs=epochs, lr=RATE, wd=0.1,
        warmup=max(10, int(0.05 * samples / BATCH)),
    )  # fmt: skip
    told = {
        "precision": precision,
        "epochs": epochs,
        "rows per epoch": share,
        "minutes": round((time.monotonic() - begin) / 60, 1),
    }
    model = OpenClip(folder, folder / "logs" / "run" / "checkpoints" / f"epoch_{epochs}.pt")
    gallery = load_items(load_card(CARD), "all", source=source, check_images=False)
    queries = load_qrels(Path(source) / "kagl_text_to_image.json")
    return evaluate(model, gallery, queries=queries).report, told


def speed(folder: Path, table: list[str], precision: str) -> float:
    """Samples/s over a few batches."""
    (folder / "train.csv").write_text("".join(table[: 10 * BATCH + 1]))
    log = open_clip_loop.train(
        folder, batch_size=BATCH, precision=precision, workers=1, epochs=1, warmup=1, save_frequency=0
    )
    return statistics.median(open_clip_loop.samples_per_second(log)[3:])


if __name__ == "__main__":
    main()
