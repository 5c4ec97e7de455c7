"""What an attribute encoder has learned: which value a product lacks, and which products are alike, though values lack.

All questions are asked of rows that training has not seen. An attribute that is asked for is hidden from whoever asks:
were it read, every answer would hold the question.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import (
    UNKNOWN,
    AttributesConfig,
    attribute_values,
    column_labels,
    column_numbers,
    every_row,
)
from dualtower.errors import ConfigError, DataError
from dualtower.evaluation.bootstrap import Difference, Interval, intervals, paired_test
from dualtower.evaluation.classification import class_metrics
from dualtower.evaluation.label_metrics import other_rows
from dualtower.evaluation.metrics import CUT_OFF
from dualtower.evaluation.product_retrieval import relevance_name, row_labels
from dualtower.evaluation.reports.report import Section, format_difference, format_interval
from dualtower.evaluation.tie_groups import TieGroups, prefix_sums
from dualtower.markdown import markdown_table
from dualtower.models.dual_tower import DualTower
from dualtower.models.encoding import evaluation_mode
from dualtower.models.heads.attribute_encoder import AttributeEncoder, Reconstruction
from dualtower.types import AttributeValues

__all__ = [
    "AttributeRetrieval",
    "evaluate_attribute_retrieval",
    "evaluate_hidden_attributes",
    "hidden_reconstructions",
    "item_attributes",
    "one_hot",
]

ROWS = 5000
"""Products that search each other at most: the time grows with their square."""
METRICS = ("ndcg@10", "precision@1", "map")
GAINED = METRICS[0]
BLOCK = 512
BASELINE = "one-hot"


def item_attributes(config: AttributesConfig, items: ItemDataset) -> AttributeValues:
    """The attributes of all rows, as a model reads them."""
    columns = items.columns.attributes
    return attribute_values(config, every_row({name: columns[name] for name in config.names}, len(items)))


def one_hot(config: AttributesConfig, values: AttributeValues) -> np.ndarray:
    """What attributes are without learning: a place for every known value, and one for each normalized number.

    Missing is 0 throughout. float32 ``[N, values + Q]``.
    """
    parts = [F.one_hot(values.codes[:, i], len(known) + 1)[:, 1:] for i, known in enumerate(config.categories.values())]
    return torch.cat([*(part.float() for part in parts), values.numbers.nan_to_num()], dim=1).numpy()


def completed(values: AttributeValues, found: Reconstruction, vectors: np.ndarray) -> np.ndarray:
    """One-hot vectors in which what is missing is filled with what the decoder says: probabilities, and numbers."""
    shares = [
        torch.where(values.codes[:, i : i + 1] == UNKNOWN, logits.softmax(1), 0.0)
        for i, logits in enumerate(found.logits)
    ]
    numbers = torch.where(values.numbers.isnan(), found.numbers, 0.0)
    filled: np.ndarray = vectors + torch.cat([*shares, numbers], dim=1).numpy()
    return filled


def hidden_reconstructions(
    model: DualTower, values: AttributeValues, *, batch_size: int = 256
) -> Iterator[Reconstruction]:
    """Reconstruct all rows once for each attribute, categories first, while it is hidden and all others are read."""
    categories = values.codes.shape[1]
    for place in range(categories + values.numbers.shape[1]):
        codes, numbers = values.codes.clone(), values.numbers.clone()
        if place < categories:
            codes[:, place] = UNKNOWN
        else:
            numbers[:, place - categories] = math.nan
        yield reconstructed(model, AttributeValues(codes, numbers), batch_size=batch_size)


def reconstructed(model: DualTower, values: AttributeValues, *, batch_size: int = 256) -> Reconstruction:
    """Reconstruct rows, on the CPU in float32; rows that are equal have equal results, to the last bit."""
    encoder = _encoder(model)
    both = torch.cat([values.codes.double(), values.numbers.double().nan_to_num(nan=math.inf)], dim=1)
    _, place = both.unique(dim=0, return_inverse=True)
    first = torch.full((int(place.max()) + 1,), len(place)).scatter_reduce(0, place, torch.arange(len(place)), "amin")
    parts = []
    with evaluation_mode(model):
        for rows in first.split(batch_size):
            found = encoder(AttributeValues(*(part[rows].to(model.device) for part in values)))
            parts.append((found.codes, *found.logits, found.numbers))
    codes, *logits, numbers = (torch.cat(column).float().cpu()[place] for column in zip(*parts, strict=True))
    return Reconstruction(codes, tuple(logits), numbers)


def similar_rows(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Let each row search all others by cosine; relevant are the other rows of its label.

    Vectors of attributes tie by the hundreds, which makes `retrieval_ranks` slow; here each row's scores are sorted as
    a whole. Scores are rounded to float32, ties have the expected rule, and figures are those of `per_query`.

    Args:
        queries: What the rows search with, ``[N, D]``.
        gallery: What they are found by, ``[N, D]``.
        labels: int ``[N]``.

    Returns:
        ``ndcg@10``, ``precision@1`` and ``map`` -> float64 ``[Q]`` over the Q rows that have a relevant one
        (`other_rows`), in their order.
    """
    sides = [_unit(vectors) for vectors in (queries, gallery)]
    relevant = other_rows(labels)
    judged = np.flatnonzero(relevant)
    groups: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(judged), BLOCK):
        rows = judged[start : start + BLOCK]
        block = (sides[0][rows] @ sides[1].T).astype(np.float32)
        for number, (row, scores) in enumerate(zip(rows, block, strict=True)):
            _, group = np.unique(-scores, return_inverse=True)
            size, alike = np.bincount(group), np.bincount(group[labels == labels[row]], minlength=group.max() + 1)
            size[group[row]] -= 1
            alike[group[row]] -= 1
            kept = np.flatnonzero(alike)
            above = np.cumsum(size) - size
            groups.append((np.full(len(kept), start + number), above[kept], size[kept], alike[kept]))
    query, above, size, alike = (np.concatenate(column) for column in zip(*groups, strict=True))
    found = TieGroups.sorted(
        query=query, above=above, size=size, relevant=alike, gain=alike.astype(float), queries=len(judged)
    )
    ideal = prefix_sums(1 / np.log2(np.arange(2, CUT_OFF + 2)))[np.minimum(relevant[judged], CUT_OFF)]
    return {
        f"ndcg@{CUT_OFF}": found.ndcg(ideal, CUT_OFF),
        "precision@1": found.sum_per_query(found.share_within(1) * alike),
        "map": found.average_precision(prefix_sums(1 / np.arange(1, found.longest + 1))),
    }


def evaluate_hidden_attributes(
    model: DualTower,
    items: ItemDataset,
    train: ItemDataset,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
) -> Section:
    """How well each attribute is told from the others, beside an answer that does not look at the product.

    That answer is the most frequent value of a category, and the median of a number, of the training rows.

    Args:
        model: With an attribute encoder.
        items: Rows to predict.
        train: Training rows.
        bootstrap: Resamples behind the 95 % intervals, by product.
        seed: Seed of the resamples.
        batch_size: Rows encoded at a time.

    Raises:
        ConfigError: The model has no attribute encoder.
    """
    config = _encoder(model).config.attributes
    values, given = item_attributes(config, items), train.columns.attributes
    found = list(hidden_reconstructions(model, values, batch_size=batch_size))
    figures: dict[str, Any] = {}
    rows = []

    def mean_of(metric: str, of_rows: np.ndarray, known: np.ndarray) -> Interval:
        return intervals({metric: of_rows}, groups=items.codes[known], bootstrap=bootstrap, seed=seed)[metric]

    for place, (name, classes) in enumerate(config.categories.items()):
        truth, predicted = values.codes[:, place].numpy() - 1, found[place].logits[place].argmax(1).numpy()
        labels = column_labels(name, classes, given[name])
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        known = truth >= 0
        if not known.any():
            rows.append([name, 0, "-", "-", "-"])
            continue
        metrics = class_metrics(truth, predicted, training_counts=counts)
        right = mean_of("accuracy", (truth == predicted)[known].astype(float), known)
        constant = float((truth[known] == counts.argmax()).mean())
        figures[name] = {**metrics.to_dict(), "low": right.low, "high": right.high, "most_frequent": constant}
        cells = [f"accuracy {format_interval('accuracy', right)}", f"{constant:.3f}", f"{metrics.macro_f1:.3f}"]
        rows.append([name, metrics.rows, *cells])
    for place, (name, (mean, deviation)) in enumerate(config.numbers.items()):
        truth = values.numbers[:, place].double().numpy()
        known = ~np.isnan(truth)
        if not known.any():
            rows.append([name, 0, "-", "-", "-"])
            continue
        predicted = found[len(config.categories) + place].numbers[:, place].double().numpy()
        median = np.nanmedian(column_numbers(name, mean, deviation, given[name]))
        wrong = [np.abs(answer - truth)[known] * deviation for answer in (predicted, median)]
        error = intervals({"error": wrong[0]}, groups=items.codes[known], bootstrap=bootstrap, seed=seed, limits=None)
        off, constant = error["error"], float(wrong[1].mean())
        figures[name] = {
            "rows": int(known.sum()),
            "mean_absolute_error": off.value,
            "low": off.low,
            "high": off.high,
            "median": constant,
        }
        within = "" if off.low is None else f" [{off.low:.4g}, {off.high:.4g}]"
        rows.append([name, int(known.sum()), f"mean error {off.value:.4g}{within}", f"{constant:.4g}", "-"])
    header = ["hidden attribute", "rows", "told from the others", "always the most frequent, or the median", "macro-F1"]
    return Section("hidden_attributes", "Hidden attributes", markdown_table(header, rows), figures)


@dataclass(frozen=True, eq=False)
class AttributeRetrieval:
    """What vectors of attributes find among products with missing values.

    Attributes:
        metrics: Share of the values that are missing -> vector (``one-hot``, ``code``, ``completed``) -> metric ->
            figure.
        gains: ndcg@10 of ``code`` and ``completed``, minus that of ``one-hot``; empty where nothing is resampled.
        protocol: What was measured on what.
    """

    metrics: Mapping[float, Mapping[str, Mapping[str, Interval]]]
    gains: Mapping[float, Mapping[str, Difference]]
    protocol: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""

        def plain(figure: Interval) -> dict[str, Any]:
            p_value = {"p_value": figure.p_value} if isinstance(figure, Difference) else {}
            return {"value": figure.value, "low": figure.low, "high": figure.high, **p_value}

        return {
            "metrics": {
                f"{share:g}": {kind: {name: plain(f) for name, f in table.items()} for kind, table in kinds.items()}
                for share, kinds in self.metrics.items()
            },
            "gains": {f"{share:g}": {k: plain(f) for k, f in kinds.items()} for share, kinds in self.gains.items()},
            "protocol": dict(self.protocol),
        }

    def table_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells: shares and vectors down, metrics across."""
        rows = []
        for share, kinds in self.metrics.items():
            for kind, table in kinds.items():
                gain = self.gains[share].get(kind)
                cells = [format_interval(name, table[name]) for name in METRICS]
                rows.append([f"{share:.0%}", kind, *cells, format_difference(gain) if gain else ""])
        return ["missing", "vector", *METRICS, f"{GAINED} against {BASELINE}"], rows

    def section(self) -> Section:
        """Return the section of a run's report."""
        told = self.protocol
        table = markdown_table(*self.table_rows(), left=(0, 1))
        words = (
            f"Each of {told['queries']:,} products searches {told['rows']:,}, itself left out, by cosine. "
            f"{told['asked']} `completed` is the one-hot vector in which the decoder has filled in what is missing."
        )
        title = f"Attributes to products: {told['relevance']}"
        return Section("attribute_retrieval", title, f"{table}\n\n{words}", self.to_dict())


def evaluate_attribute_retrieval(
    model: DualTower,
    items: ItemDataset,
    *,
    relevance: Sequence[str] = (),
    missing: Sequence[float] = (0.0, 0.2, 0.5),
    hide: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
) -> AttributeRetrieval:
    """Let every product search all others by its attributes: as code, one-hot, and one-hot completed by the decoder.

    What makes products alike is hidden in the queries, while the products that they search keep it: it is the question
    of a new product whose type nobody has entered yet. With `hide` off, or relevance to attributes that the model does
    not read, queries and products are read alike.

    Args:
        model: With an attribute encoder.
        items: Rows that training has not seen. Of each product its first row takes part, since the others mostly have
            the same attributes; of more than 5,000 products, that many are drawn.
        relevance: Attributes; relevant is what shares the values of all of them. Default the first category that the
            model reads.
        missing: Shares of the values that are hidden by chance, the same ones of all vectors, in queries and products.
        hide: Whether the queries lack what they ask for.
        bootstrap: Resamples behind the 95 % intervals, by product.
        seed: Seed of what is hidden and of the resamples.
        batch_size: Rows encoded at a time.

    Raises:
        ConfigError: The model has no attribute encoder, or it reads no category and no relevance is given.
        UnknownName: No such attribute.
        DataError: No two products are alike.
    """
    config = _encoder(model).config.attributes
    relevance = tuple(relevance) or tuple(config.categories)[:1]
    if not relevance:
        raise ConfigError("this model reads no category; name attributes with --reconstruction.relevance")
    items = _products(items, seed)
    labels = row_labels(items, relevance)
    judged = np.flatnonzero(other_rows(labels))
    if not len(judged):
        raise DataError(f"{items.card}, {items.split}: no two products are alike in {relevance_name(relevance)}")
    values = item_attributes(config, items)
    asked = [name for name in relevance if hide and name in config.names]
    metrics, gains = {}, {}
    for share in missing:
        given = _with_missing(values, share, seed)
        sides = [_vectors(model, some, batch_size=batch_size) for some in (_without(config, given, asked), given)]
        found = {kind: similar_rows(sides[0][kind], sides[1][kind], labels) for kind in sides[0]}
        metrics[share] = {k: intervals(v, bootstrap=bootstrap, seed=seed) for k, v in found.items()}
        gains[share] = {
            kind: paired_test(found[BASELINE][GAINED], table[GAINED], resamples=10 * bootstrap, seed=seed)
            for kind, table in found.items()
            if kind != BASELINE and bootstrap
        }
    is_read = any(name in config.names for name in relevance)
    read = "hidden in the queries" if asked else "read like all others" if is_read else "in none of the vectors"
    protocol = {
        "card": items.card,
        "split": items.split,
        "data_fingerprint": items.fingerprint,
        "rows": len(items),
        "queries": len(judged),
        "of_each_product": "first row",
        "relevance": relevance_name(relevance),
        "asked": f"What makes them alike ({', '.join(relevance)}) is {read}.",
        "read": list(config.names),
        "model_fingerprint": model.fingerprint,
        "ties": "expected",
    }
    return AttributeRetrieval(metrics, gains, protocol)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length, float64; one without any value stays 0."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _encoder(model: DualTower) -> AttributeEncoder:
    if model.attribute_encoder is None:
        raise ConfigError("this model has no attribute encoder; recipes/pretrain_attributes.py trains one")
    return model.attribute_encoder


def _products(items: ItemDataset, seed: int) -> ItemDataset:
    """The first row of each product, or of some."""
    _, first = np.unique(items.codes, return_index=True)
    if len(first) > ROWS:
        first = np.random.default_rng(seed).permutation(first)[:ROWS]
    return items.select(np.sort(first).tolist())


def _with_missing(values: AttributeValues, share: float, seed: int) -> AttributeValues:
    """The values without a share of them, each hidden by itself."""
    rng = torch.Generator().manual_seed(seed)
    hidden = [torch.rand(part.shape, generator=rng) < share for part in values]
    return AttributeValues(
        values.codes.masked_fill(hidden[0], UNKNOWN), values.numbers.masked_fill(hidden[1], math.nan)
    )


def _without(config: AttributesConfig, values: AttributeValues, names: Sequence[str]) -> AttributeValues:
    """The values without those of some attributes."""
    codes, numbers = values.codes.clone(), values.numbers.clone()
    codes[:, [i for i, name in enumerate(config.categories) if name in names]] = UNKNOWN
    numbers[:, [i for i, name in enumerate(config.numbers) if name in names]] = math.nan
    return AttributeValues(codes, numbers)


def _vectors(model: DualTower, values: AttributeValues, *, batch_size: int) -> dict[str, np.ndarray]:
    found = reconstructed(model, values, batch_size=batch_size)
    plain = one_hot(_encoder(model).config.attributes, values)
    return {BASELINE: plain, "code": found.codes.numpy(), "completed": completed(values, found, plain)}
