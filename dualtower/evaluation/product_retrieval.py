"""Product to product: how well do a title, an image, their average and the fused vector find similar products?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import every_row
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation.bootstrap import Difference, Interval, intervals, paired_test
from dualtower.evaluation.label_metrics import label_metrics, other_rows
from dualtower.evaluation.reports.report import Section, format_interval
from dualtower.markdown import markdown_table
from dualtower.models.dual_tower import DualTower

__all__ = ["ProductRetrieval", "evaluate_product_retrieval", "relevance_name", "row_labels"]

SINGLE = ("title", "image")


@dataclass(frozen=True, eq=False)
class ProductRetrieval:
    """Figures of each way to represent a product, and what the last one gains.

    Attributes:
        metrics: ``title``, ``image``, ``average`` and, with a fusion, ``fused`` -> metric -> figure; of model or
            products with one side, that alone.
        per_query: The same with one value per query, ``[N]``.
        gains: ``best single`` and ``average`` -> metric -> fused minus that; empty without a fusion.
        protocol: What was measured on what.
    """

    metrics: Mapping[str, Mapping[str, Interval]]
    per_query: Mapping[str, Mapping[str, np.ndarray]]
    gains: Mapping[str, Mapping[str, Difference]]
    protocol: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"product_to_product": {kind: {metric: {value, low, high}}}, "gains": ..., "protocol"}``."""

        def plain(tables: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
            return {
                kind: {name: {"value": f.value, "low": f.low, "high": f.high} for name, f in table.items()}
                for kind, table in tables.items()
            }

        return {"product_to_product": plain(self.metrics), "gains": plain(self.gains), "protocol": dict(self.protocol)}

    def table(self) -> str:
        """Markdown: metrics down, representations across."""
        names = list(next(iter(self.metrics.values())))
        header = ["metric", *self.metrics, *(f"fused − {other}" for other in self.gains)]
        rows = [
            [
                name,
                *(format_interval(name, table[name]) for table in self.metrics.values()),
                *(f"{t[name].value:+.3f} [{t[name].low:+.3f}, {t[name].high:+.3f}]" for t in self.gains.values()),
            ]
            for name in names
        ]
        first = self.protocol.get("of_each_row")
        return markdown_table(header, rows) + (f"\n\nOf each row counts its {first}." if first else "")

    def section(self) -> Section:
        """Return the section of a run's report."""
        title = f"Product to product: {self.protocol['relevance']}"
        return Section("product_retrieval", title, self.table(), self.to_dict())


def evaluate_product_retrieval(
    model: DualTower,
    items: ItemDataset,
    *,
    relevance: Sequence[str] = (),
    ks: Sequence[int] = (1, 5, 10),
    bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> ProductRetrieval:
    """Let every product search all others; it never finds itself.

    Args:
        model: With or without a fusion.
        items: N rows, each with a title and an image, or all of them with one of the two.
        relevance: Attributes; relevant is what shares the values of all of them. None: what is the same product.
        ks: Cut-offs of precision and recall.
        bootstrap: Resamples behind the 95 % intervals, by product.
        seed: Seed of the resamples.
        batch_size: Rows embedded at a time.
        progress: Show progress bars.

    Raises:
        UnknownName: No such attribute.
        DataError: A row lacks a side that others have, there is none that the model embeds, or no product has a
            relevant one.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"cut-offs are {tuple(ks)}; give one or more, each at least 1")
    model.config.require_tower("product to product")
    labels = row_labels(items, relevance)
    vectors = _vectors(model, items, batch_size=batch_size, progress=progress)
    relevant = other_rows(labels)
    judged = np.flatnonzero(relevant)
    if not len(judged):
        raise DataError(f"{items.card}, {items.split}: no two products are alike in {relevance_name(relevance)}")
    values = {kind: label_metrics(matrix, labels, ks=ks) for kind, matrix in vectors.items()}
    groups = items.codes[judged]
    gains = {}
    if "fused" in values:
        best = max((kind for kind in SINGLE if kind in values), key=lambda kind: float(values[kind]["ndcg@10"].mean()))
        for title, kind in ((f"best single ({best})", best), ("average", "average")):
            if kind not in values:
                continue
            gains[title] = {
                metric: paired_test(values[kind][metric], values["fused"][metric], groups=groups, seed=seed)
                for metric in values["fused"]
            }
    return ProductRetrieval(
        metrics={k: intervals(v, groups=groups, bootstrap=bootstrap, seed=seed) for k, v in values.items()},
        per_query=values,
        gains=gains,
        protocol={
            "card": items.card,
            "split": items.split,
            "data_fingerprint": items.fingerprint,
            "rows": len(items),
            "queries": len(judged),
            "relevance": relevance_name(relevance),
            "own_row_excluded": True,
            **_left_out(items),
            "relevant_per_query": float(relevant[judged].mean()),
            "model_fingerprint": model.fingerprint,
            "computed": model.computes,
            "ties": "expected",
        },
    )


def _left_out(items: ItemDataset) -> dict[str, Any]:
    """What a row's vectors are made of where it has several captions or images."""
    several = len(items.extra_images) or any(len(captions) > 1 for captions in items.columns.texts)
    return {"of_each_row": "first caption and first image"} if several else {}


def relevance_name(relevance: Sequence[str]) -> str:
    return f"same {' and '.join(relevance)}" if relevance else "same product"


def row_labels(items: ItemDataset, relevance: Sequence[str]) -> np.ndarray:
    """One number per row; rows that lack a value get numbers that nobody shares."""
    if not relevance:
        return items.codes
    for name in relevance:
        if name not in items.columns.attributes:
            raise UnknownName("attribute", name, items.columns.attributes)
    numbers: dict[tuple[str, ...], int] = {}
    labels = np.empty(len(items), np.int64)
    for row, values in enumerate(zip(*(items.columns.attributes[name] for name in relevance), strict=True)):
        lacking = any(value is None or value == "" for value in values)
        labels[row] = -1 - row if lacking else numbers.setdefault(tuple(map(str, values)), len(numbers))
    return labels


def _vectors(model: DualTower, items: ItemDataset, *, batch_size: int, progress: bool) -> dict[str, np.ndarray]:
    texts = [captions[0] if captions else "" for captions in items.columns.texts]
    images: Any = items.images
    titled, with_images = any(texts), any(image is not None for image in images)
    modalities, vectors = model.config.modalities, {}
    if titled and "text" in modalities:
        vectors["title"] = model.encode_text(texts, batch_size=batch_size, progress=progress)
    if with_images and "image" in modalities:
        vectors["image"] = model.encode_image(images, batch_size=batch_size, progress=progress)
    if len(vectors) == 2:
        vectors["average"] = vectors["title"] + vectors["image"]
    if not vectors:
        raise DataError(f"{items.card}, {items.split}: no row has what this model embeds, {modalities[0]}s")
    if model.fusion is not None:
        rows = every_row(items.columns.attributes, len(items))
        vectors["fused"] = model.encode_product(
            text=texts, image=images, attributes=rows, batch_size=batch_size, progress=progress
        )
    return vectors
