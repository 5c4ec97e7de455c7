"""How well heads predict attributes from the vector of a whole product, also on the long tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import column_labels
from dualtower.errors import ConfigError
from dualtower.evaluation.reports.report import Section
from dualtower.markdown import markdown_table
from dualtower.models.dual_tower import DualTower
from dualtower.models.encoding import evaluation_mode
from dualtower.sharding import combine, shard

__all__ = [
    "FREQUENCIES",
    "HEAD",
    "TAIL",
    "ClassMetrics",
    "class_frequencies",
    "class_metrics",
    "class_scores",
    "evaluate_heads",
    "predicted_classes",
]

FREQUENCIES = ("head", "mid", "tail")
HEAD, TAIL = 100, 20  # training rows of a class: more is head, fewer is tail (https://arxiv.org/abs/1904.05160)


@dataclass(frozen=True)
class ClassMetrics:
    """Figures of one head.

    Attributes:
        rows: Rows whose true class training knew.
        accuracy: Share of them that was predicted right.
        macro_f1: F1 averaged over the classes that occur among truths or predictions.
        by_frequency: ``head``, ``mid``, ``tail`` -> mean recall of the classes of that frequency that occur.
    """

    rows: int
    accuracy: float
    macro_f1: float
    by_frequency: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": self.rows,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            **{f"recall_{part}": value for part, value in self.by_frequency.items()},
        }

    def cells(self) -> list[str]:
        """Cells of a table."""
        recall = [f"{self.by_frequency[k]:.3f}" if k in self.by_frequency else "-" for k in FREQUENCIES]
        return [f"{self.rows:,}", f"{self.accuracy:.3f}", f"{self.macro_f1:.3f}", *recall]


def class_metrics(truth: np.ndarray, predicted: np.ndarray, *, training_counts: np.ndarray) -> ClassMetrics:
    """Accuracy, macro-F1 and recall by frequency.

    Args:
        truth: Class of each row, int ``[N]``, -1 where it is unknown; such rows do not count.
        predicted: Class of each row, int ``[N]``.
        training_counts: Training rows of each class, ``[C]``.

    Raises:
        ConfigError: No row has a known class.
    """
    known = truth >= 0
    if not known.any():
        raise ConfigError("no row has a class that training knew; measure another split, or leave this head out")
    scores = class_scores(truth[known], predicted[known], frequencies=class_frequencies(training_counts))
    by_frequency = {part: scores[name] for part in FREQUENCIES if (name := f"recall_{part}") in scores}
    return ClassMetrics(int(known.sum()), scores["accuracy"], scores["macro_f1"], by_frequency)


def class_frequencies(training_counts: np.ndarray) -> np.ndarray:
    """Which of `FREQUENCIES` each class belongs to, by its training rows ``[C]``: text ``[C]``."""
    return np.where(training_counts > HEAD, "head", np.where(training_counts < TAIL, "tail", "mid"))


def class_scores(
    truth: np.ndarray, predicted: np.ndarray, *, frequencies: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """The figures of `class_metrics` by name: ``accuracy``, ``macro_f1``, and the recall of each part that occurs.

    Args:
        truth: Class of each row, int ``[N]``, all known.
        predicted: Class of each row, int ``[N]``.
        frequencies: See `class_frequencies`.
        weights: How often each row counts, ``[N]``, in a resample; None counts each once.
    """
    count, equal = len(frequencies), truth == predicted
    right = np.bincount(truth[equal], None if weights is None else weights[equal], minlength=count)
    actual, assigned = (np.bincount(labels, weights, minlength=count) for labels in (truth, predicted))
    occurs = actual + assigned > 0
    f1 = 2 * right[occurs] / (actual + assigned)[occurs]
    recalls = {
        f"recall_{part}": float((right[of] / actual[of]).mean())
        for part in FREQUENCIES
        if (of := (frequencies == part) & (actual > 0)).any()
    }
    return {"accuracy": float(right.sum() / actual.sum()), "macro_f1": float(f1.mean()), **recalls}


def predicted_classes(model: DualTower, items: ItemDataset, *, batch_size: int = 256) -> dict[str, np.ndarray]:
    """Class that each head predicts for each row, int64 ``[N]``.

    Raises:
        ConfigError: The model has no fusion.
    """
    collator = model.collator()
    heads = model.config.fusion.tasks if model.config.fusion else {}
    predicted = {name: np.zeros(len(items), np.int64) for name in heads}
    with evaluation_mode(model):
        for start in shard(range(0, len(items), batch_size)):
            rows = range(start, min(start + batch_size, len(items)))
            batch = collator([items[i] for i in rows]).to(model.device)
            for name, logits in model.fuse(model(batch), batch)[1].items():
                predicted[name][rows] = torch.argmax(logits, dim=1).cpu().numpy()
    combine(*predicted.values())
    return predicted


def evaluate_heads(model: DualTower, items: ItemDataset, train: Mapping[str, Sequence[Any]]) -> Section:
    """Measure every head of a model.

    Args:
        model: With a fusion.
        items: Rows to predict.
        train: Attribute -> values of the training rows, which say how frequent a class is.
    """
    tasks = model.config.fusion.tasks if model.config.fusion else {}
    figures = {}
    for name, predicted in predicted_classes(model, items).items():
        values = items.columns.attributes[name]
        truth, seen = (column_labels(name, tasks[name], some) for some in (values, train[name]))
        counts = np.bincount(seen[seen >= 0], minlength=len(tasks[name]))
        figures[name] = class_metrics(truth, predicted, training_counts=counts)
    header = ["head", "rows", "accuracy", "macro-F1", *(f"recall, {kind} classes" for kind in FREQUENCIES)]
    rows = [[name, *f.cells()] for name, f in figures.items()]
    plain = {name: f.to_dict() for name, f in figures.items()}
    return Section("heads", "Heads", markdown_table(header, rows), plain)
