"""What one must know to read the metrics of an evaluation, or to measure them again."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dualtower.data.items import ItemDataset
from dualtower.evaluation.bootstrap import intervals
from dualtower.evaluation.directions import Direction
from dualtower.evaluation.metrics import TieRule, chance_levels, per_query
from dualtower.evaluation.qrels import Qrels
from dualtower.evaluation.sides import Encoder
from dualtower.version import __version__

__all__ = ["protocol_of"]


def protocol_of(
    model: Encoder,
    items: ItemDataset,
    queries: Qrels | None,
    directions: Mapping[str, Direction],
    *,
    ks: Sequence[int],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    return {
        "card": items.card,
        "split": items.split,
        "data_fingerprint": items.fingerprint,
        "rows": len(items),
        "rows_left_out": len(items.skipped),
        **_sizes_of_rows(items, directions.values(), captions=queries is None),
        "relevance": f"qrels {queries.name}" if queries else "same product",
        "model_fingerprint": model.fingerprint,
        "computed": getattr(model, "computes", {}),
        "similarity": model.config.similarity,
        "directions": {name: _sizes(d, ks) for name, d in directions.items()},
        "ties": "expected",
        "intervals": {
            "level": 0.95,
            "method": "bootstrap by product",
            "where_all_resamples_agree": "Clopper-Pearson",
            "resamples": bootstrap,
            "seed": seed,
        },
        "versions": {
            "dualtower": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def _sizes_of_rows(items: ItemDataset, directions: Collection[Direction], *, captions: bool) -> dict[str, Any]:
    """How many captions and images the rows have."""
    sizes: dict[str, Any] = {}
    if captions and any(direction.gallery.texts is not None for direction in directions):
        total = sum(map(len, items.columns.texts))
        sizes |= {"captions": total, "captions_per_row": total / len(items)}
    with_images = [len(direction.gallery.keys) for direction in directions if direction.gallery.images is not None]
    return sizes | ({"images": with_images[0], "images_per_row": with_images[0] / len(items)} if with_images else {})


def _sizes(direction: Direction, ks: Sequence[int]) -> dict[str, Any]:
    """What one must know of a direction to read its figures."""
    ranks = direction.ranks

    def bound(ties: TieRule) -> dict[str, float]:
        return {
            name: figure.value for name, figure in intervals(per_query(ranks, ks=ks, ties=ties), bootstrap=0).items()
        }

    return {
        "queries": len(ranks.judged),
        "queries_without_relevant": len(ranks) - len(ranks.judged),
        "gallery": len(direction.gallery.rows),
        "own_row_excluded": direction.exclude is not None,
        "relevant_per_query": len(ranks.items) / len(ranks.judged),
        "queries_with_ties": len(np.unique(ranks.queries[ranks.tied > 0])),
        "chance": chance_levels(ranks, ks=ks),
        "optimistic": bound("optimistic"),
        "pessimistic": bound("pessimistic"),
    }
