"""Train several variants for the same time on the fashion products and compare their recall.

    python benchmarks/compare.py quality   --source FOLDER      # the recipe, 10 and 60 minutes
    python benchmarks/compare.py towers    --source FOLDER      # every text tower x ResNet, ViT, Swin, 5 minutes each
    python benchmarks/compare.py losses    --source FOLDER      # InfoNCE, SigLIP, triplet, 5 minutes each
    python benchmarks/compare.py positives --source FOLDER      # with and without product-aware positives, 4 epochs
    python benchmarks/compare.py pretrained --source FOLDER     # an hour of pairs; 20 minutes of images and 40 of pairs

The recipe is made for the synthetic catalog's thousand rows; with forty times as many, batches of 512 at a higher rate
learn more in the same time. The hour-long run has a wider network, too. Both are measured a second time with
`ModelConfig.flip_tta`, which embeds an image together with its mirror image.

Protocol: train on the train rows, choose the checkpoint on the validation rows, then rank the whole card (train +
validation + test) for the KAGL queries of github.com/marqo-ai/marqo-FashionCLIP, whose relevant images all lie in
the test rows. The many runs of losses and towers rank the test rows alone, which gives higher figures. Every run is
a run of recipes/train_clip_style.py with overrides, one at a time, alone on the machine. The last column is the
paired difference of recall@10 to the first row, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from common import ranked_sizes, save_results

from dualtower import DualTower, ImageTowerConfig, LossConfig, RunConfig, TextTowerConfig
from dualtower.data.cards import load_card
from dualtower.data.loading import load_items
from dualtower.evaluation import compare, evaluate, load_qrels
from dualtower.training.run import run

Budget = dict[str, float]
"""``minutes`` or ``epochs``, and how many: time where speed is part of the question, samples where it is not."""
HERE = Path(__file__).parent
CARD = HERE.parent / "data_cards" / "fashion_products.md"

PUBLISHED = "published, pretrained"
PRETRAINED = "a third of the time on images alone, then pairs"

SMALL_GALLERY = ("losses", "towers")
"""Experiments of many short runs, which rank the test rows only."""

IMAGE_TOWERS = {
    "ResNet": ImageTowerConfig(name="resnet10t"),
    "ViT": ImageTowerConfig(
        name="vit_tiny_patch16_224", options={"patch_size": 10, "embed_dim": 192, "depth": 6, "num_heads": 3}
    ),
    "Swin": ImageTowerConfig(
        name="swin_tiny_patch4_window7_224",
        options={"embed_dim": 48, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 5},
    ),
}
TEXT_TOWERS = {
    "bag of words": TextTowerConfig(name="bow", width=256),
    "BERT": TextTowerConfig(name="bert", width=256, layers=2, heads=4),
    "LSTM": TextTowerConfig(name="lstm", width=256, layers=1),
    "TextCNN": TextTowerConfig(name="textcnn", width=256),
}


def recipe_module(name: str = "train_clip_style") -> ModuleType:
    """A recipe; the config of the main one is where every run starts from."""
    path = HERE.parent / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(experiment: str, base: RunConfig) -> dict[str, tuple[Budget, RunConfig]]:
    """Name -> (budget, config) of every run of an experiment."""
    base = replace(base, train=replace(base.train, batch_size=512, lr=1e-2, adamw_lr=3e-3, ema=0.995))
    if experiment == "quality":
        return {"10 minutes": (minutes(10), base), "60 minutes": (minutes(60), _for_an_hour(base))}
    if experiment == "pretrained":
        hour = _for_an_hour(base)
        return {"pairs alone": (minutes(60), hour), PRETRAINED: (minutes(60), hour)}
    if experiment == "positives":
        plain = replace(base, loss=replace(base.loss, positives="pair"))
        return {"own pair only": ({"epochs": 4}, plain), "same product": ({"epochs": 4}, base)}
    if experiment == "losses":
        start = {"init_scale": 10.0, "init_bias": -10.0}
        siglip = replace(base, loss=LossConfig(name="siglip"), model=replace(base.model, **start))
        triplet = replace(base, loss=LossConfig(name="triplet", margin=0.2, mining="semi-hard"))
        return {"InfoNCE": (minutes(5), base), "SigLIP": (minutes(5), siglip), "triplet": (minutes(5), triplet)}
    return {
        f"{text_name} + {image_name}": (minutes(5), _with_towers(base, text, image))
        for text_name, text in TEXT_TOWERS.items()
        for image_name, image in IMAGE_TOWERS.items()
    }


def minutes(number: float) -> Budget:
    """A budget of time."""
    return {"minutes": number}


def _for_an_hour(base: RunConfig) -> RunConfig:
    """A wider network; words are hidden and images moved further, or it learns them by heart."""
    model = replace(base.model, image=recipe_module().plain_network(64, 128, 256, 512))
    harder = replace(base.train, token_dropout=0.1, augmentation_strength=1.0, weight_decay=0.1)
    return replace(base, model=model, train=harder)


def _with_towers(base: RunConfig, text: TextTowerConfig, image: ImageTowerConfig) -> RunConfig:
    scales = base.train.image_size_schedule if "resnet" in image.name else ()  # windows and patches fix the image size
    model = replace(base.model, text=text, image=image)
    return replace(base, model=model, train=replace(base.train, image_size_schedule=scales))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["quality", "towers", "losses", "positives", "pretrained"])
    parser.add_argument("--source", required=True, help="folder with the fashion products and kagl_text_to_image.json")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder for the runs")
    parser.add_argument("--minutes", type=float, help="instead of the experiment's own budget")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="of the experiment's runs only these, by name")
    args = parser.parse_args()

    chosen = variants(args.experiment, recipe_module().config())
    if unknown := set(args.only or ()) - set(chosen):
        parser.error(f"no run {', '.join(sorted(unknown))} in {args.experiment}; there are: {', '.join(chosen)}")

    split = "test" if args.experiment in SMALL_GALLERY else "all"
    gallery = load_items(load_card(CARD), split, source=args.source)
    queries = load_qrels(Path(args.source) / "kagl_text_to_image.json")
    rows: list[list[str]] = []
    values, first = {}, None
    for name, (budget, config) in chosen.items():
        if args.only and name not in args.only:
            continue
        budget = minutes(args.minutes) if args.minutes else budget
        out = args.out / args.experiment / name.replace(" ", "_")
        if not (out / "metrics.json").exists():  # a run that is already there is measured, not repeated
            if name == PRETRAINED:
                config, budget = pretrained(config, budget, out.with_name("images"), args.source)
            train(config, budget, out, args.source)
        model = DualTower.from_pretrained(out / "model")
        ((unit, amount),) = budget.items()
        for flip_tta in (False, True) if args.experiment == "quality" else (False,):
            model.config = replace(model.config, flip_tta=flip_tta)
            result = evaluate(model, gallery, queries=queries)
            first = first or result
            title = f"{name}, mirrored" if flip_tta else name
            rows.append([title, f"{amount:g} {unit}", *figures(result), difference(result, first)])
            values[title] = {**budget, **result.report.to_dict()}
        if args.experiment == "quality":
            rows = [row for row in rows if row[1] != PUBLISHED] + published()
        save(args.experiment, rows, values)  # after every run: an hour's work is not lost to a later one


def published() -> list[list[str]]:
    """The card's baselines: models with web-scale pretraining and larger images, by the same queries and metrics."""
    shown = ("recall@1", "recall@10", "mrr@10")
    return [
        [of.model, PUBLISHED, *(f"{of.metrics[name]:.3f}" for name in shown), "", "", ""]
        for of in load_card(CARD).baselines
    ]


def save(experiment: str, rows: list[list[str]], values: dict[str, Any]) -> None:
    """Write what has been measured so far."""
    gallery = "the test" if experiment in SMALL_GALLERY else "all"
    header = ["run", "budget", "text→image recall@1", "recall@10", "MRR@10", "image→text recall@1", "recall@10"]
    save_results(
        f"compare_{experiment}",
        title=f"Fashion products, KAGL queries against {gallery} rows: {experiment}",
        tables=[([*header, "recall@10 against the first"], rows)],
        values=values,
        notes=ranked_sizes(next(iter(values.values()))["protocol"]),
    )


def train(config: RunConfig, budget: Budget, out: Path, source: str) -> None:
    """One run of the recipe with another budget."""
    given: Any = {"epochs": None, "steps": None, "minutes": None, **budget}
    data = replace(config.data, card=CARD, source=source)
    if not run(replace(config, data=data, train=replace(config.train, **given), out=out, overwrite=True)):
        sys.exit(130)  # stopped by a signal


def pretrained(config: RunConfig, budget: Budget, out: Path, source: str) -> tuple[RunConfig, Budget]:
    """Let the image tower learn from images alone for a third of the time; what begins with it has the rest."""
    whole, image, alone = budget["minutes"], config.model.image, recipe_module("pretrain_simclr").config()
    assert image is not None
    if not (out / "metrics.json").exists():
        train(replace(alone, model=replace(alone.model, image=image)), minutes(whole / 3), out, source)
    model = replace(config.model, image=replace(image, pretrained=str(out / "model")))
    return replace(config, model=model), minutes(whole * 2 / 3)


def figures(result) -> list[str]:
    """Both directions with their intervals."""
    cells = []
    for direction, metric in [
        ("text_to_image", "recall@1"),
        ("text_to_image", "recall@10"),
        ("text_to_image", "mrr@10"),
        ("image_to_text", "recall@1"),
        ("image_to_text", "recall@10"),
    ]:
        figure = result.report.to_dict()[direction][metric]
        cells.append(f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})")
    return cells


def difference(result, first) -> str:
    """Paired difference of text→image recall@10."""
    if result is first:
        return ""
    figure = compare(first, result)["text_to_image"]["recall@10"]
    return f"{figure.value:+.3f} ({figure.low:+.3f} to {figure.high:+.3f})"


if __name__ == "__main__":
    main()
