"""Run by torchrun from `test_sharding`: whatever a run measures, by all ranks together, written by each of them."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import factories
import numpy as np
import torch
import torch.distributed as dist

from dualtower import DualTower, Item
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import AttributesConfig, fit_attributes
from dualtower.evaluation import choose_weight, evaluate, evaluate_product_retrieval, rerank
from dualtower.evaluation.classification import predicted_classes
from dualtower.models.heads import FusionConfig, RerankerConfig
from dualtower.sharding import rank, sharded, world_size

ROWS = 1100  # so many that the image tower's faster copy embeds them


def items() -> ItemDataset:
    rows = [
        Item(
            str(i),
            str(i % 700),
            (f"{factories.TITLES[i % 36]} number {i % 700}",),
            factories.png(factories.photo(i % 700)),
            {"color": ("red", "blue", "green")[i % 3], "size": ("S", "L")[i % 2]},
        )
        for i in range(ROWS)
    ]
    return ItemDataset.from_rows(rows)


def model(data: ItemDataset) -> DualTower:
    attributes = fit_attributes(AttributesConfig(names=("size",)), data.attributes)
    return factories.model(
        "bow",
        "resnet",
        head_norm="batch",
        reranker=RerankerConfig(layers=1, width=16, heads=2),
        fusion=FusionConfig(method="concat", attributes=attributes, tasks={"color": ["blue", "green", "red"]}),
    )


def measure(made: DualTower, data: ItemDataset) -> dict[str, np.ndarray]:
    """Every number that a run's report is made from."""
    result = evaluate(made, data, bootstrap=50)
    found: dict[str, Any] = {}
    for name, direction in result.directions.items():
        found |= {f"{name}/{metric}": values for metric, values in direction.per_query.items()}
        found[f"{name}/embeddings"] = direction.queries.embeddings
        found[f"{name}/tied"] = direction.ranks.tied
    found["intervals"] = np.array([[f.low, f.high] for f in result.report.metrics["text_to_image"].values()])
    chosen = choose_weight(made, result, top=5)
    found["weight"] = np.array([float(made.reranker.weight), *chosen.values()])
    again = rerank(made, result, top=5, bootstrap=50)
    found |= {f"reranked/{n}/{m}": v for n, d in again.directions.items() for m, v in d.per_query.items()}
    similar = evaluate_product_retrieval(made, data, relevance=("color",), bootstrap=0)
    found |= {f"similar/{kind}/{m}": v for kind, table in similar.per_query.items() for m, v in table.items()}
    found |= {f"heads/{name}": classes for name, classes in predicted_classes(made, data).items()}
    return found


class Counted:
    """Counts the rows that this process embeds."""

    def __init__(self, made: DualTower) -> None:
        self.rows = 0
        made.register_forward_pre_hook(self.count)

    def count(self, _: Any, arguments: Any) -> None:
        self.rows += len(arguments[0].ids)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    data = items()
    made = model(data)
    counted = Counted(made)
    with sharded():
        found = measure(made, data)
    np.savez(out / f"rank{rank()}.npz", world_size=world_size(), rows=counted.rows, **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
