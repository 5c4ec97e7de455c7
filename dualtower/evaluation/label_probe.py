"""What few labels teach on top of a model: the same measurement for several models and several shares of the labels.

How a model learns from the labels is none of this room's business: `measure_labels` hands out rows with labels, and
judges what comes back for the test rows. `vector_probe` is one way, on frozen vectors; fine-tuning is another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualtower.data.items import ItemDataset
from dualtower.evaluation.bootstrap import Interval, percentile_interval, row_weights
from dualtower.evaluation.classification import FREQUENCIES, HEAD, TAIL, class_frequencies, class_metrics, class_scores
from dualtower.evaluation.label_splits import LabeledSplits, label_draws
from dualtower.evaluation.probes import NEIGHBORS, ProbeMethod, check_neighbors, predicted_labels
from dualtower.evaluation.reports.report import format_interval
from dualtower.markdown import markdown_table
from dualtower.models.dual_tower import DualTower

__all__ = [
    "LabelProbe",
    "ProbeCell",
    "Vectors",
    "image_vectors",
    "measure_labels",
    "vector_probe",
]

METRICS = ("accuracy", "macro_f1", *(f"recall_{part}" for part in FREQUENCIES))

Vectors = Callable[[ItemDataset], np.ndarray]
"""Makes a float ``[N, D]`` of rows with images."""
Predict = Callable[[np.ndarray, int], np.ndarray]
"""From the numbers of the training rows whose labels are known, and that of the draw, to a class of each test row."""


@dataclass(frozen=True, eq=False)
class ProbeCell:
    """One model on one share of the labels.

    Attributes:
        model: Its name.
        fraction: Share of the labels.
        labels: Number of labels that it learned from.
        metrics: ``accuracy``, ``macro_f1``, and ``recall_head``, ``recall_mid`` and ``recall_tail`` where there are
            such classes among the test rows; means over the draws.
        by_draw: The same figures of each draw.
    """

    model: str
    fraction: float
    labels: int
    metrics: Mapping[str, Interval]
    by_draw: Sequence[Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        metrics = {name: {"value": m.value, "low": m.low, "high": m.high} for name, m in self.metrics.items()}
        return {
            "model": self.model,
            "fraction": self.fraction,
            "labels": self.labels,
            **metrics,
            "draws": [dict(figures) for figures in self.by_draw],
        }


@dataclass(frozen=True, eq=False)
class LabelProbe:
    """The measured cells, and what is to be known of them.

    Attributes:
        cells: Model by model, from the smallest fraction to the largest.
        protocol: What was measured on what.
        notes: Sentences for below the table.
    """

    cells: Sequence[ProbeCell]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def table(self) -> str:
        """Markdown: models and shares of the labels down, metrics across, and the notes."""
        names = [name for name in METRICS if any(name in cell.metrics for cell in self.cells)]
        titles = {"macro_f1": "macro-F1", **{f"recall_{part}": f"recall, {part} classes" for part in FREQUENCIES}}
        rows = [
            [
                cell.model,
                f"{100 * cell.fraction:g} %",
                cell.labels,
                *(format_interval(n, cell.metrics[n]) if n in cell.metrics else "-" for n in names),
            ]
            for cell in self.cells
        ]
        table = markdown_table(["model", "share of labels", "labels", *(titles.get(n, n) for n in names)], rows)
        return "\n\n".join([table, " ".join(self.notes)]).strip()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"protocol": dict(self.protocol), "notes": list(self.notes), "cells": [c.to_dict() for c in self.cells]}


def measure_labels(
    models: Mapping[str, Predict],
    splits: LabeledSplits,
    fractions: Sequence[float],
    *,
    method: str,
    draws: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
) -> LabelProbe:
    """Let each model learn from each share of the labels, and judge what it says of the test rows.

    The intervals are those of a bootstrap by product over the test rows. Where there are several draws of the labels,
    each resample takes one draw fewer than there are, with repetition: so the variance between draws, too, is estimated
    without bias (P. J. McCarthy and C. B. Snowden 1985, "The bootstrap and finite population sampling"). What resamples
    deviate from the figure on average is taken off them: a class with few test rows is missing from many of them.

    Args:
        models: Name -> what makes predictions; the draws are the same for all.
        splits: See `labeled_splits`.
        fractions: Shares of the training rows.
        method: How the models learn, for the protocol.
        draws: How often each share is drawn.
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed of draws and resamples.

    Raises:
        ConfigError: As in `label_draws`.
    """
    fractions = sorted(dict.fromkeys(fractions))
    drawn = label_draws(splits, fractions, draws=draws, seed=seed)
    cells = []
    for name, predict in models.items():
        for fraction, rows_of_draws in zip(fractions, drawn, strict=True):
            predicted = [predict(rows, number) for number, rows in enumerate(rows_of_draws)]
            metrics, by_draw = _judged(splits, predicted, bootstrap=bootstrap, seed=seed)
            cells.append(ProbeCell(name, fraction, len(rows_of_draws[0]), metrics, by_draw))
    protocol = {
        "label": splits.label,
        "classes": len(splits.classes),
        "method": method,
        "card": splits.test.card,
        "train_split": splits.train.split,
        "train_rows": len(splits.train),
        "test_split": splits.test.split,
        "test_rows": len(splits.test),
        "left_out": list(splits.left_out),
        "draws": draws,
        "bootstrap": bootstrap,
        "seed": seed,
    }
    return LabelProbe(
        cells, protocol, _notes(splits, smallest=fractions[0], draws=max(map(len, drawn)), bootstrap=bootstrap)
    )


def _judged(
    splits: LabeledSplits, predicted: Sequence[np.ndarray], *, bootstrap: int, seed: int
) -> tuple[dict[str, Interval], list[dict[str, float]]]:
    """The mean figures of some draws with their intervals, and the figures of each."""
    truth, frequencies = splits.test_labels, class_frequencies(splits.counts)
    by_draw = [_plain(class_metrics(truth, labels, training_counts=splits.counts).to_dict()) for labels in predicted]
    means = {name: float(np.mean([figures[name] for figures in by_draw])) for name in by_draw[0]}
    if not bootstrap:
        return {name: Interval(value) for name, value in means.items()}, by_draw
    random = np.random.default_rng([seed, 1])
    resampled = {name: np.full(bootstrap, np.nan) for name in means}
    weights_of_rows = row_weights(len(truth), groups=splits.test.codes, bootstrap=bootstrap, seed=seed)
    for number, weights in enumerate(weights_of_rows):
        picked = random.integers(len(predicted), size=max(1, len(predicted) - 1))
        figures = [class_scores(truth, predicted[d], frequencies=frequencies, weights=weights) for d in picked]
        for name in figures[0]:
            resampled[name][number] = np.mean([scores[name] for scores in figures])
    of_part = {f"recall_{part}": frequencies[truth] == part for part in FREQUENCIES}
    every = np.ones(len(truth), bool)
    return {
        name: percentile_interval(
            value,
            _centered(resampled[name], value),
            products=len(np.unique(splits.test.codes[of_part.get(name, every)])),
        )
        for name, value in means.items()
    }, by_draw


def _centered(resampled: np.ndarray, value: float) -> np.ndarray:
    """Resamples of a share without their bias: a class of few test rows is missing from many, and so is its F1."""
    return np.clip(resampled + value - np.nanmean(resampled), 0, 1)


def _plain(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in METRICS if name in figures}


def _notes(splits: LabeledSplits, *, smallest: float, draws: int, bootstrap: int) -> list[str]:
    """What a table of these splits does not say itself."""
    notes = [
        f"{splits.label}: {len(splits.classes):,} classes; {len(splits.train):,} rows of {splits.train.split} to learn "
        f"from, {len(splits.test):,} rows of {splits.test.split} to predict.",
        *(f"Left out: {'; '.join(splits.left_out)}." for _ in splits.left_out[:1]),
        f"Head, mid and tail classes have more than {HEAD}, {TAIL} to {HEAD}, and fewer than {TAIL} rows among all of "
        "those to learn from.",
    ]
    several = f" and over {draws} draws of the labels, whose mean is shown" if draws > 1 else ""
    if smallest < 1:
        notes.append(
            "Each class keeps one label or more, so rare ones stand for more of a small share than of all rows."
        )
    if bootstrap:
        notes.append(f"Brackets are 95 % intervals over the products of the test rows{several}.")
    elif several:
        notes.append(f"Figures are means of {draws} draws of the labels.")
    return notes


def vector_probe(
    vectors: Mapping[str, Vectors],
    splits: LabeledSplits,
    fractions: Sequence[float],
    *,
    method: ProbeMethod,
    neighbors: int = NEIGHBORS,
    draws: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
) -> LabelProbe:
    """Probe frozen vectors; each row is embedded once, and training rows only where a draw has them.

    Args:
        vectors: Name of a model -> what embeds rows.
        splits: See `labeled_splits`.
        fractions: Shares of the training rows.
        method: ``knn`` (`nearest_vote`) or ``linear`` (`linear_probe`).
        neighbors: How many vote, for ``knn``.
        draws: How often each share is drawn.
        bootstrap: Number of resamples.
        seed: Seed of draws, resamples and of what a linear probe holds out.

    Raises:
        ConfigError: As in `label_draws`, or there are no neighbors.
    """
    check_neighbors(neighbors)  # before the minutes of embedding
    drawn = label_draws(splits, fractions, draws=draws, seed=seed)
    needed = np.unique(np.concatenate([rows for of_fraction in drawn for rows in of_fraction]))
    classes = len(splits.classes)

    def predictor(embed: Vectors) -> Predict:
        embedded: list[np.ndarray] = []

        def predict(rows: np.ndarray, draw: int) -> np.ndarray:
            if not embedded:
                embedded.extend(embed(items) for items in (splits.train.select(needed), splits.test))
            train, test = embedded
            known, labels = train[np.searchsorted(needed, rows)], splits.train_labels[rows]
            return predicted_labels(method, known, labels, test, classes=classes, neighbors=neighbors, seed=seed)

        return predict

    models = {name: predictor(embed) for name, embed in vectors.items()}
    return measure_labels(models, splits, fractions, method=method, draws=draws, bootstrap=bootstrap, seed=seed)


def image_vectors(model: DualTower, *, batch_size: int = 256, progress: bool = False) -> Vectors:
    """What embeds the (first) images of rows with a model.

    Raises:
        ConfigError: The model has no image tower.
    """
    model.config.require("image", "a probe of what images tell")

    def embed(items: ItemDataset) -> np.ndarray:
        images: Any = items.images  # all of them present
        return model.encode_image(images, batch_size=batch_size, progress=progress)

    return embed
