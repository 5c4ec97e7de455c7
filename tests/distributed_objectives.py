"""Run by torchrun from `test_objectives`: gradients of DDP ranks against one process on the joined batch."""

from __future__ import annotations

import copy
import json

import factories
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dualtower import (
    AttributesConfig,
    DualTower,
    FusionConfig,
    LossConfig,
    MatchingConfig,
    RerankerConfig,
    TaskConfig,
    distributed,
)
from dualtower.data.transforms.attributes import attribute_values, class_labels, fit_attributes
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import rank, world_size
from dualtower.losses import build_loss
from dualtower.objectives import contrastive, matching, product
from dualtower.objectives.base import Objective
from dualtower.objectives.matching import Matching
from dualtower.objectives.product import ProductFused
from dualtower.types import Batch

ROWS = 12
COLORS, THINGS = ("red", "navy", "red", None), ("mug", "bag", "mug", "hat", "mug", "bag")
ROW_ATTRIBUTES = [{"color": COLORS[i % 4], "thing": THINGS[i % 6]} for i in range(ROWS)]


def model(kind: str) -> DualTower:
    torch.manual_seed(0)
    fusion = reranker = None
    if kind == "matching":
        reranker = RerankerConfig(layers=1, width=8, heads=2, dropout=0.0)
    else:
        names = AttributesConfig(("color",), width=4, dropout=0.0)
        read = fit_attributes(names, {"color": [row["color"] for row in ROW_ATTRIBUTES]})
        options = {"width": 8, "heads": 2, "layers": 1, "dropout": 0.0, "modality_dropout": 0.0, "attributes": read}
        fusion = FusionConfig(method="cross", tasks={"thing": ["bag", "mug"]}, **options)
    built = factories.model("textcnn", "vit").with_heads(reranker=reranker, fusion=fusion).double().train()
    for module in built.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for last in [built.reranker.score[-1]] if reranker else [built.fusion.out]:
        torch.nn.init.normal_(last.weight)
    return built


def joined_batch(built: DualTower) -> Batch:
    texts = [
        " ".join(factories.TITLES[i].split()[: 1 + i % 3]) for i in range(ROWS)
    ]  # ranks have texts of other lengths
    pixels = torch.rand(ROWS, 3, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 255
    items = torch.tensor([0, 1, 2, 0, 4, 5, 1, 7, 8, 9, 0, 11])
    collator = built.collator()
    return Batch(
        tuple(texts),
        items,
        pixels=pixels,
        tokens=collator.tokens(texts),
        attributes=_double(attribute_values(collator.attributes, ROW_ATTRIBUTES)) if collator.attributes else None,
        labels=class_labels({"thing": ["bag", "mug"], "color": ["navy", "red"]}, ROW_ATTRIBUTES),
    )


def _double(values):
    return values._replace(numbers=values.numbers.double())


def part(batch: Batch, rows: slice) -> Batch:
    longest = int(batch.tokens["attention_mask"][rows].sum(1).max())
    return Batch(
        batch.ids[rows],
        batch.product_codes[rows],
        pixels=batch.pixels[rows],
        tokens={name: values[rows, :longest] for name, values in batch.tokens.items()},
        attributes=batch.attributes and type(batch.attributes)(*(v[rows] for v in batch.attributes)),
        labels=batch.labels[rows],
    )


def objective(kind: str, built: DualTower) -> Objective:
    contrastive = build_loss(LossConfig())
    if kind == "matching":
        config = MatchingConfig(negatives=3, temperature=1.0)
        return Matching(built, config, contrast=build_loss(LossConfig()), contrastive=contrastive)
    classes = {"thing": ["bag", "mug"], "color": ["navy", "red"]}
    shares = {"thing": torch.tensor([0.3, 0.7], dtype=torch.float64).log()}
    config = TaskConfig(labels=("thing", "color"), heads=("thing",), logit_adjustment=0.5)
    return ProductFused(
        built, config, classes=classes, log_shares=shares, pair_loss=build_loss(LossConfig()), contrastive=contrastive
    )


def errors(kind: str) -> dict[str, float]:
    built = model(kind)
    alone, together = objective(kind, copy.deepcopy(built)), objective(kind, built)
    whole = joined_batch(built)
    with pytest.MonkeyPatch.context() as patch:  # one process on the joined batch
        for room in (distributed, contrastive, matching, product):
            patch.setattr(room, "rank", lambda: 0, raising=False)
        patch.setattr(distributed, "world_size", lambda: 1)
        alone.loss(alone(whole, BatchRNG(3, size=ROWS)), whole).backward()

    own = part(whole, slice(rank() * ROWS // world_size(), (rank() + 1) * ROWS // world_size()))
    wrapped = DistributedDataParallel(together)
    together.loss(wrapped(own, BatchRNG(3, size=ROWS)), own).backward()
    result = {}
    for (name, mine), wanted in zip(together.named_parameters(), alone.parameters(), strict=True):
        assert wanted.grad is not None and mine.grad is not None, f"{kind}: {name} takes no part"
        if not wanted.numel():
            continue
        largest = wanted.grad.abs().max().item() or 1.0
        result[f"{kind}: {name}"] = (mine.grad - wanted.grad).abs().max().item() / largest
    return result


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    report = errors("matching") | errors("product")
    if rank() == 0:
        print(json.dumps({"world_size": world_size(), "errors": report}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
