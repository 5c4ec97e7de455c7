"""What image embeddings are good for before anybody has trained them for it: labels, products, and their neighbors.

Everything stands beside the same for random weights and for raw pixels: on product photos, which lie straight on white,
a random network and 16x16 pixels find a good deal already, and only what exceeds them has been learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import column_labels, fit_classes
from dualtower.errors import DataError
from dualtower.evaluation.baselines import raw_pixels, with_fresh_weights
from dualtower.evaluation.bootstrap import Interval, intervals
from dualtower.evaluation.config import EvaluationConfig
from dualtower.evaluation.label_metrics import label_metrics, other_rows
from dualtower.evaluation.probes import PROBE_METHODS, ProbeMethod, linear_probe, nearest_vote
from dualtower.evaluation.reports.figures import Framed, draw_strip
from dualtower.evaluation.reports.report import Section, format_interval
from dualtower.evaluation.spread import spread
from dualtower.markdown import markdown_table
from dualtower.models.dual_tower import DualTower
from dualtower.models.whitening import image_features, image_tower_alone, whitening

__all__ = ["representation_sections"]

MAX_CLASSES = 200
"""Attributes with more values, such as brands or ids, are measured only where somebody names them."""
MAX_FITTED = 10_000
"""Rows that a linear probe is fitted on; more of them change little and take minutes."""
MAX_SPREAD = 4000
"""Training images by which a collapse is noticed."""
MODEL, AS_TRAINED, RANDOM = "the model", "as trained", "random weights"
RAW, RAW_WHITENED = "raw 16x16 pixels", "raw pixels, whitened"
FEW_STEPS = 25
"""Iterations of the linear probe; `dualtower probe` takes its time."""
SHOWN, HITS = 6, 8
_NAMES: dict[ProbeMethod, str] = {"knn": "kNN-10", "linear": "linear probe"}


@dataclass(frozen=True, eq=False)
class _Vectors:
    """Embeddings of the training split ``[N, D]`` and of the measured split ``[M, D]``."""

    train: np.ndarray
    test: np.ndarray


def representation_sections(
    model: DualTower,
    items: ItemDataset,
    train: ItemDataset,
    *,
    labels: Sequence[str] | None,
    settings: EvaluationConfig,
    progress: bool = False,
) -> list[Section]:
    """Measure a model's image embeddings.

    Args:
        model: With an image tower, bare or under a head that whitens the features of one of its stages. Random weights
            are then treated likewise, raw pixels are shown whitened too, and the bare features of the last stage, by
            which a tower is trained, stand beside.
        items: The measured split.
        train: Rows whose labels are known: neighbors of the kNN vote, and what the linear probe is fitted on.
        labels: Attributes to find; None for all of the card that have from 2 to `MAX_CLASSES` values.
        settings: Resamples and batch size.
        progress: Whether to show progress bars.

    Returns:
        A table of figures with the watch on collapse, and nearest neighbors as images.

    Raises:
        DataError: The measured split has no image.
    """
    of_train, rows = (np.flatnonzero(some.images.sizes() >= 0) for some in (train, items))
    if not len(rows):
        raise DataError(f"{items.card}, split {items.split}: there are no images to measure")
    tower, under_a_head = image_tower_alone(model), model.config.head != "none"

    def features(of: DualTower) -> Callable[[Any], np.ndarray]:
        return lambda images: image_features(of, images, batch_size=settings.batch_size, progress=progress)

    embed = {MODEL: features(tower), RANDOM: features(with_fresh_weights(tower)), RAW: raw_pixels}
    trained = image_tower_alone(model, stage=-1, grid=1)
    if trained.config != tower.config:
        embed[AS_TRAINED] = features(trained)
    wanted = _labels(train) if labels is None else fit_classes(labels, train.columns.attributes)
    if not wanted:
        of_train = of_train[:: math.ceil(len(of_train) / MAX_SPREAD)]
    vectors = {
        name: _Vectors(
            encode(train.images.select(of_train)),
            encode(items.images.select(rows)),
        )
        for name, encode in embed.items()
    }
    if under_a_head:
        vectors = {
            MODEL: _under_the_head(model, vectors[MODEL]),
            AS_TRAINED: vectors.get(AS_TRAINED, vectors[MODEL]),
            RANDOM: _whitened(vectors[RANDOM]),
            RAW: vectors[RAW],
            RAW_WHITENED: _whitened(vectors[RAW]),
        }
    measured = items if len(rows) == len(items) else items.select(rows)
    neighbors = train if len(of_train) == len(train) else train.select(of_train)
    table: dict[str, dict[str, Interval]] = {}
    for attribute, classes in wanted.items():
        table |= _found_labels(attribute, classes, vectors, neighbors, measured, settings)
    table |= _found_products(vectors, measured, settings)
    return [_figures(table, vectors, measured, neighbors if wanted else None), _neighbors(vectors, measured)]


def _under_the_head(model: DualTower, vectors: _Vectors) -> _Vectors:
    """What the model's head makes of its tower's features: images need not be embedded a second time."""
    assert model.image_head is not None
    with torch.inference_mode():
        made = (model.image_head(torch.from_numpy(some).to(model.device)) for some in (vectors.train, vectors.test))
        return _Vectors(*(some.float().cpu().numpy() for some in made))


def _whitened(vectors: _Vectors) -> _Vectors:
    """The same vectors, whitened by those of the training split."""
    mean, deviation, directions = whitening(_some(vectors.train))
    return _Vectors(*((some - mean) / deviation @ directions for some in (vectors.train, vectors.test)))


def _labels(train: ItemDataset) -> dict[str, list[str]]:
    """The card's attributes that are worth a look, and their classes."""
    columns, found = train.columns.attributes, {}
    for name in columns:
        try:
            classes = fit_classes([name], columns)[name]
        except DataError:  # one value alone
            continue
        if len(classes) <= MAX_CLASSES:
            found[name] = classes
    return found


def _found_labels(
    attribute: str,
    classes: Sequence[str],
    vectors: Mapping[str, _Vectors],
    train: ItemDataset,
    items: ItemDataset,
    settings: EvaluationConfig,
) -> dict[str, dict[str, Interval]]:
    """Accuracy of each probe on one attribute by each kind of vectors."""
    known, truth = (column_labels(attribute, classes, some.columns.attributes[attribute]) for some in (train, items))
    labeled, judged = np.flatnonzero(known >= 0), np.flatnonzero(truth >= 0)
    if not len(labeled) or not len(judged):
        return {}
    fitted = np.sort(np.random.default_rng(0).permutation(labeled)[:MAX_FITTED])
    lines: dict[str, dict[str, Interval]] = {}
    for method in PROBE_METHODS:
        rows = labeled if method == "knn" else fitted
        right = {
            name: _predicted(method, some.train[rows], known[rows], some.test[judged], len(classes)) == truth[judged]
            for name, some in vectors.items()
            if method == "knn" or name != RAW_WHITENED  # what whitens is linear, and so is what is fitted
        }
        lines[f"{_NAMES[method]} accuracy: {attribute}"] = intervals(
            right, groups=items.codes[judged], bootstrap=settings.bootstrap
        )
    return lines


def _predicted(
    method: ProbeMethod, train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int
) -> np.ndarray:
    """Labels by one of the probes, in seconds: the penalty of the linear one is chosen by a single look."""
    if method == "knn":
        return nearest_vote(train, labels, test, classes=classes)
    return linear_probe(train, labels, test, classes=classes, steps=FEW_STEPS, judged=1)


def _found_products(
    vectors: Mapping[str, _Vectors], items: ItemDataset, settings: EvaluationConfig
) -> dict[str, dict[str, Interval]]:
    """How well an image finds the others of its product, where there are any."""
    judged = np.flatnonzero(other_rows(items.codes))
    if not len(judged):
        return {}
    figures = {name: label_metrics(_unit(some.test), items.codes, ks=settings.ks) for name, some in vectors.items()}
    return {
        f"image → image, same product: recall@{k}": intervals(
            {name: of[f"recall@{k}"] for name, of in figures.items()},
            groups=items.codes[judged],
            bootstrap=settings.bootstrap,
        )
        for k in settings.ks
    }


def _figures(
    table: Mapping[str, Mapping[str, Interval]],
    vectors: Mapping[str, _Vectors],
    items: ItemDataset,
    train: ItemDataset | None,
) -> Section:
    """The table, and whether the embeddings have collapsed."""
    kinds = list(vectors)
    spreads = {name: spread(_some(some.train)) for name, some in vectors.items()}
    rows = [
        [name, *(format_interval(name, line[kind]) if kind in line else "" for kind in kinds)]
        for name, line in table.items()
    ]
    rows.append(["deviation of the embeddings", *(f"{spreads[kind].deviation:.3f}" for kind in kinds)])
    rows.append(["effective rank of the embeddings", *(f"{spreads[kind].effective_rank:.1f}" for kind in kinds)])
    own = spreads.get(AS_TRAINED, spreads[MODEL])  # whitened, the noise of a collapsed tower fills all directions
    failure = (
        f"the embeddings have collapsed: deviation {own.deviation:.3f} (1 is spread evenly, below 0.02 a point), "
        f"effective rank {own.effective_rank:.1f}; lower --train.lr, raise "
        "--ssl.temperature or the momentum, or begin with another seed"
        if own.collapsed
        else ""
    )
    said = f"{len(items):,} images of {items.card}, split {items.split}."
    if train is not None:
        said += (
            f" Labels are found by the vote of the ten nearest of {len(train):,} training images, and by a linear "
            f"layer fitted on {min(len(train), MAX_FITTED):,} of them; rows without a label do not count. In brackets: "
            "95 % intervals by product."
        )
    parts = [markdown_table(["figure", *kinds], rows), said, *([f"**Collapsed**: {failure}"] if failure else [])]
    plain: dict[str, Any] = {
        name: {kind: {"value": f.value, "low": f.low, "high": f.high} for kind, f in line.items()}
        for name, line in table.items()
    }
    plain["spread"] = {
        kind: {"deviation": some.deviation, "effective_rank": some.effective_rank} for kind, some in spreads.items()
    }
    return Section("representation", "What the embeddings know", "\n\n".join(parts), plain, failure=failure)


def _neighbors(vectors: Mapping[str, _Vectors], items: ItemDataset) -> Section:
    """Some images with their nearest ones."""
    vectors_of_model = _unit(next(iter(vectors.values())).test)
    chosen = np.random.default_rng(0).permutation(len(items))[:SHOWN]
    lines, images = [], {}
    for number, row in enumerate(chosen.tolist(), 1):
        scores = vectors_of_model @ vectors_of_model[row]
        scores[row] = -np.inf
        nearest = np.argsort(-scores, kind="stable")[: min(HITS, len(items) - 1)]
        hits = [
            Framed(items.images[int(i)], bool(items.codes[i] == items.codes[row]), f"{scores[i]:.2f}") for i in nearest
        ]
        name = f"neighbors_{number}.png"
        images[name] = draw_strip([hits], query=items.images[row])
        lines.append(f"![nearest neighbors](report/{name})")
    said = "At the left an image drawn at random, behind it the nearest ones; those of its product have a green frame."
    return Section("neighbors", "Nearest neighbors", "\n\n".join([said, *lines]), {}, images)


def _some(vectors: np.ndarray) -> np.ndarray:
    return vectors[:: math.ceil(len(vectors) / MAX_SPREAD)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
