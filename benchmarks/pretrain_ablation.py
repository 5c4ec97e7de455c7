r"""What each ingredient of the SimCLR pretraining is worth: it is left out, or another stands in its place.

    python benchmarks/pretrain_ablation.py --source FOLDER_OF_FASHION_PRODUCTS --out ablation

Every line is a training of recipes/pretrain_simclr.py on the same rows for as many epochs, measured on the validation
split: labels by the vote of the ten nearest of all training images, and the other images of a product by cosine. The
last column is the paired difference of the accuracy to the recipe's, with its 95 % interval. One training each: what is
smaller than the difference between the recipe's seeds, which stand in the table too, says nothing. A training that is
already there is measured, not repeated; the table is written after each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results
from torch import Tensor

from dualtower import DualTower, RunConfig, load_card, load_items, run
from dualtower.data.items import ItemDataset
from dualtower.data.transforms import augmentation
from dualtower.data.transforms.attributes import column_labels, fit_classes
from dualtower.data.transforms.augmentation import AUGMENTATIONS, BatchRNG
from dualtower.evaluation.bootstrap import intervals, paired_test
from dualtower.evaluation.label_metrics import label_metrics, other_rows
from dualtower.evaluation.probes import nearest_vote
from dualtower.evaluation.reports.report import format_interval
from dualtower.models.whitening import image_features, image_tower_alone

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
LABEL, RECIPE = "articleType", "the recipe"
Figures = dict[str, np.ndarray]


def without(*left_out: str) -> Callable[[Tensor, BatchRNG, tuple[int, int], float], Tensor]:
    """The views of SimCLR but for some of their steps."""

    def views(pixels: Tensor, rng: BatchRNG, size: tuple[int, int], strength: float) -> Tensor:
        stretch, smallest = (4 / 3) ** strength, 0.2**strength
        area, ratio = ((1.0, 1.0), (1.0, 1.0)) if "crop" in left_out else ((smallest, 1.0), (1 / stretch, stretch))
        pixels = augmentation._crop_and_flip(pixels, rng, size, area=area, ratio=ratio)
        steps = {
            "color": (0.8, lambda some: augmentation._jitter(some, rng, strength=0.8 * strength)),
            "gray": (0.2, lambda some: augmentation._gray(some).expand_as(some)),
            "blur": (0.5, lambda some: augmentation._blur(some, rng)),
        }
        for name, (chance, changed) in steps.items():
            if name not in left_out:
                pixels = torch.where(augmentation._as_mask(rng.chance(chance)), changed(pixels), pixels)
        return pixels

    return views


def variants(recipe: RunConfig) -> dict[str, RunConfig]:
    """Name -> config of every training."""

    def training(**changes: Any) -> RunConfig:
        return replace(recipe, train=replace(recipe.train, **changes))

    def learning(**changes: Any) -> RunConfig:
        return replace(recipe, ssl=replace(recipe.ssl, **changes))

    found = {RECIPE: recipe, "another seed": training(seed=1)}
    for left_out in (("crop",), ("color",), ("gray",), ("blur",), ("color", "gray", "blur")):
        name = f"without {', '.join(left_out)}"
        AUGMENTATIONS[name] = without(*left_out)
        found[name] = training(augmentation=name)
    found |= {
        "gentle views (apparel)": training(augmentation="apparel"),
        "views at full strength": training(augmentation_strength=1.0),
        "temperature 0.1": learning(temperature=0.1),
        "temperature 0.5": learning(temperature=0.5),
        "128 rows a step": training(batch_size=128),
        "AdamW": training(optimizer="adamw", lr=2.5e-3, adamw_lr=None),
        "LAMB": training(optimizer="lamb", lr=1e-2, adamw_lr=None),
        "LARS": training(optimizer="lars", lr=1.0, adamw_lr=None),
        "images of a product attract each other": learning(positives="product"),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--out", required=True, type=Path, help="folder for the models")
    parser.add_argument("--rows", type=int, default=10_000, help="of the training split that are trained on")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--threads", type=int, help="processor cores; default all")
    args = parser.parse_args()

    from pretrain_simclr import config

    recipe = config()
    data = replace(recipe.data, card=CARD, source=args.source, max_rows=args.rows)
    train = replace(recipe.train, minutes=None, epochs=args.epochs, cpu_threads=args.threads, trackers=())
    recipe = replace(recipe, data=data, train=train, evaluation=replace(recipe.evaluation, bootstrap=0), overwrite=True)
    known, asked = (load_items(load_card(CARD), split, source=args.source) for split in ("train", "validation"))
    found: dict[str, Figures] = {}
    for name, chosen in variants(recipe).items():
        out = args.out / name.replace(" ", "_")
        if not (out / "metrics.json").exists():
            run(replace(chosen, out=out))
        model = DualTower.from_pretrained(out / "model")
        found[name] = measured(lambda items, model=model: model.encode_image(items.images), known, asked)
        if name == RECIPE:
            for title, stage, grid in (("its last stage, bare", -1, 1), ("its stage before, 2 x 2, bare", -2, 2)):
                tower = image_tower_alone(model, stage=stage, grid=grid)
                found[title] = measured(lambda items, tower=tower: image_features(tower, items.images), known, asked)
        save(found, asked, known, args)


def classes_of(known: ItemDataset, asked: ItemDataset) -> tuple[np.ndarray, np.ndarray, int]:
    """Classes of the rows of both, -1 where there is none, and how many there are."""
    classes = fit_classes([LABEL], known.columns.attributes)[LABEL]
    first, second = (column_labels(LABEL, classes, some.columns.attributes[LABEL]) for some in (known, asked))
    return first, second, len(classes)


def measured(embed: Callable[[ItemDataset], np.ndarray], known: ItemDataset, asked: ItemDataset) -> Figures:
    """Per judged row: whether its label is found, and the share of its product's other images among ten."""
    of_known, truth, classes = classes_of(known, asked)
    vectors, questions = embed(known), embed(asked)
    labeled, judged = of_known >= 0, truth >= 0
    votes = nearest_vote(vectors[labeled], of_known[labeled], questions[judged], classes=classes)
    return {"label": votes == truth[judged], **label_metrics(questions, asked.codes, ks=(10,))}


def save(found: dict[str, Figures], asked: ItemDataset, known: ItemDataset, args: argparse.Namespace) -> None:
    """Write what has been measured so far."""
    judged = classes_of(known, asked)[1] >= 0
    groups = {"label": asked.codes[judged], "recall@10": asked.codes[other_rows(asked.codes)]}
    rows, values = [], {}
    for name, of in found.items():
        figures = {key: intervals({key: of[key]}, groups=groups[key])[key] for key in groups}
        gain = None if name == RECIPE else paired_test(found[RECIPE]["label"], of["label"], groups=groups["label"])
        difference = "" if gain is None else f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
        rows.append([name, *(format_interval(key, figure) for key, figure in figures.items()), difference])
        values[name] = {key: vars(figure) for key, figure in figures.items()}
        values[name]["difference"] = None if gain is None else vars(gain)
    save_results(
        "pretrain_ablation",
        title="Ingredients of the SimCLR pretraining",
        tables=[
            (["training", f"kNN-10 accuracy, {LABEL}", "image→image recall@10", "accuracy against the recipe's"], rows)
        ],
        values=values,
        notes=(
            f"{args.epochs:g} epochs of {args.rows:,} training rows each, {len(asked):,} validation images, one "
            "training a line. Brackets are 95 % intervals by product."
        ),
    )


if __name__ == "__main__":
    main()
