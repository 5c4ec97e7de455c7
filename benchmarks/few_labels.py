r"""Fine-tune from several starts with few labels, beside the same networks from fresh weights at equal total time.

    python benchmarks/few_labels.py --source FOLDER \
        SimCLR=runs/simclr/model:30 ImageNet=runs/imagenet/model ImageNet+SimCLR=runs/both/model:30

A start is a name, a model folder and, behind a colon, the minutes that its pretraining took on this machine; weights
from elsewhere cost none. The fresh weights beside it are of the same architecture, and train for the minutes of the
pretraining and of the fine-tuning together, once for all starts that share both. Draws of the labels, augmentation and
optimizer are the same for all (`dualtower probe --method finetune`). The figure is the macro-F1 on the test rows; its
ratio is that of the means over the draws, with the least and the greatest ratio of a single draw behind it.

Trainings run one after another, alone on the machine; the table is written after each start.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from common import counted, save_results

from dualtower import DualTower, ModelConfig, load_card, load_items
from dualtower.evaluation.label_probe import ProbeCell, measure_labels
from dualtower.evaluation.label_splits import LabeledSplits, labeled_splits
from dualtower.evaluation.reports.report import format_interval
from dualtower.training.label_finetuning import FINETUNING, finetuned, image_model

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
METRICS = ("accuracy", "macro_f1", "recall_head", "recall_mid", "recall_tail")
WANTED = 1.2
"""Ratio to fresh weights that pretraining should reach."""


class Start(NamedTuple):
    """Where a fine-tuning begins: a name, a model folder, and the minutes that its weights cost."""

    name: str
    model: str
    minutes: float


class Fresh(NamedTuple):
    """What fresh weights of an architecture reach in so many minutes."""

    config: ModelConfig
    minutes: float
    cells: Sequence[ProbeCell]


def start(text: str) -> Start:
    """Read ``NAME=MODEL`` or ``NAME=MODEL:MINUTES``."""
    name, equals, rest = text.partition("=")
    model, colon, minutes = rest.rpartition(":")
    if not equals or not name or not rest:
        raise argparse.ArgumentTypeError(f"{text!r} is no start; write NAME=MODEL or NAME=MODEL:MINUTES")
    try:
        return Start(name, model, float(minutes)) if colon else Start(name, rest, 0.0)
    except ValueError:
        return Start(name, rest, 0.0)  # a colon in the name of a folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("starts", nargs="+", type=start, metavar="NAME=MODEL[:MINUTES]")
    parser.add_argument("--source", help="folder with the products of the card")
    parser.add_argument("--card", type=Path, default=CARD)
    parser.add_argument("--label", default="articleType")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1], help="shares of the labels")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each fine-tuning")
    parser.add_argument("--draws", type=int, default=3, help="of each share of the labels")
    parser.add_argument("--lr", type=float, default=FINETUNING.lr, help="peak learning rate of the towers")
    parser.add_argument("--name", default="few_labels", help="of the files in results/")
    args = parser.parse_args()

    card = load_card(args.card)
    train, test = (load_items(card, split, source=args.source) for split in ("train", "test"))
    splits = labeled_splits(train, test, args.label, numeric=card.columns.numeric)
    rows: list[list[str]] = []
    values: dict[str, Any] = {}
    fresh: list[Fresh] = []
    for begun in args.starts:
        model = DualTower.from_pretrained(begun.model)
        tuned = measured(begun.name, model, splits, args, minutes=args.minutes)
        beside = fresh_weights(fresh, model, splits, args, minutes=args.minutes + begun.minutes)
        for cell, without in zip(tuned, beside.cells, strict=True):
            rows.append(table_row(begun.name, cell, begun.minutes, args.minutes, ratio(cell, without)))
            rows.append(table_row(f"fresh weights, as {begun.name}", without, 0.0, beside.minutes, ""))
        values[begun.name] = {
            "pretraining_minutes": begun.minutes,
            "cells": [cell.to_dict() for cell in tuned],
            "fresh": [cell.to_dict() for cell in beside.cells],
        }
        save(args, splits, rows, values)  # after every start: an hour's work is not lost to a later one


def measured(
    name: str,
    model: DualTower,
    splits: LabeledSplits,
    args: argparse.Namespace,
    *,
    minutes: float,
    scratch: bool = False,
) -> Sequence[ProbeCell]:
    """Fine-tune with every share and draw of the labels."""
    predict = finetuned(model, splits, replace(FINETUNING, minutes=minutes, lr=args.lr), scratch=scratch, name=name)
    return measure_labels({name: predict}, splits, args.fractions, method="finetune", draws=args.draws).cells


def fresh_weights(
    known: list[Fresh], model: DualTower, splits: LabeledSplits, args: argparse.Namespace, *, minutes: float
) -> Fresh:
    """What fresh weights reach; measured once for each architecture and time."""
    config = image_model(model).config
    for found in known:
        if found.config == config and found.minutes == minutes:
            return found
    cells = measured("fresh weights", model, splits, args, minutes=minutes, scratch=True)
    known.append(Fresh(config, minutes, cells))
    return known[-1]


def ratio(cell: ProbeCell, without: ProbeCell) -> str:
    """Macro-F1 as a multiple of that of fresh weights, and the range over draws."""
    mean = cell.metrics["macro_f1"].value / max(without.metrics["macro_f1"].value, 1e-9)
    each = [
        one["macro_f1"] / max(other["macro_f1"], 1e-9) for one, other in zip(cell.by_draw, without.by_draw, strict=True)
    ]
    return f"{mean:.2f}" + (f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else "")


def table_row(name: str, cell: ProbeCell, before: float, minutes: float, times: str) -> list[str]:
    """One start with one share of the labels."""
    figures = [format_interval(m, cell.metrics[m]) if m in cell.metrics else "-" for m in METRICS]
    share = f"{100 * cell.fraction:g} % ({cell.labels:,})"
    return [name, share, f"{before:g} + {minutes:g}", *figures, times]


def save(args: argparse.Namespace, splits: LabeledSplits, rows: list[list[str]], values: Mapping[str, Any]) -> None:
    """Write what has been measured so far."""
    names = ["accuracy", "macro-F1", "recall, head", "mid", "tail classes"]
    header = ["start", "labels", "minutes", *names, "macro-F1, × fresh weights"]
    save_results(
        args.name,
        title=f"Fine-tuning with few labels of {args.label}",
        tables=[(header, rows)],
        values={"starts": dict(values), "minutes": args.minutes, "draws": args.draws, "lr": args.lr},
        notes=(
            f"{len(splits.classes)} classes, {len(splits.test):,} test rows, {counted(args.draws, 'draw')} of the "
            "labels, each class with one label or more. Minutes are those of pretraining and of fine-tuning. Brackets "
            "are 95 % intervals over test products and draws; behind a ratio stands its range over draws. "
            f"Wanted: {WANTED}."
        ),
    )


if __name__ == "__main__":
    main()
