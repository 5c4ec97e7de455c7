"""Run by torchrun from `test_self_supervised`: some steps of every objective, whose gradients and state it saves."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import factories
import torch
import torch.distributed as dist
from torch import nn

from dualtower import DualTower, SelfSupervisedConfig
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import rank, with_averaged_gradients, world_size
from dualtower.objectives.self_supervised.base import SelfSupervised
from dualtower.objectives.self_supervised.byol import BYOL
from dualtower.objectives.self_supervised.moco import MoCo, MoCoV3
from dualtower.objectives.self_supervised.simclr import SimCLR
from dualtower.training.batchnorm import synchronize_batchnorm
from dualtower.types import Batch

ROWS, STEPS = 12, 3
PRODUCTS = torch.tensor([0, 1, 2, 0, 4, 5, 1, 7, 8, 9, 0, 11])
SETTINGS = {"projection": 6, "hidden": 10, "momentum": 0.8, "final_momentum": 1.0, "queue": 24}
POSITIVES = {
    "view": SelfSupervisedConfig(**SETTINGS),
    "product": SelfSupervisedConfig(positives="product", **SETTINGS),
    "label": SelfSupervisedConfig(positives="label", label="color", **SETTINGS),
}


def objectives() -> dict[str, SelfSupervised]:
    """All of them, with weights of their own that are the same on all ranks."""
    made: dict[str, SelfSupervised] = {}
    for positives, config in POSITIVES.items():
        for kind in (SimCLR, MoCoV3, BYOL):
            made[f"{kind.__name__}, {positives}"] = kind(model(), config)
        made[f"MoCo, {positives}"] = MoCo(model(), config, batch_size=ROWS // world_size())
    made["SimCLR, attacked"] = SimCLR(model(), replace(POSITIVES["view"], adversary=8.0, adversary_steps=2))
    return {name: objective.double().train() for name, objective in made.items()}


def model() -> DualTower:
    torch.manual_seed(0)
    return DualTower(replace(factories.config("bow", "gernet"), text=None, head="none"))


def joined(step: int) -> Batch:
    """The batch of a step, with two views that are no augmentations of each other: it is the arithmetic that counts."""
    random = torch.Generator().manual_seed(step)
    first, second = (255 * torch.rand(ROWS, 3, 40, 30, dtype=torch.float64, generator=random) for _ in range(2))
    labels = torch.tensor([0, 0, 1, -1, 1, 2, 0, -1, 2, 1, 0, 2]).unsqueeze(1)
    return Batch(tuple(map(str, range(ROWS))), PRODUCTS, pixels=first, more_views=(second,), labels=labels)


def own(batch: Batch) -> Batch:
    share = ROWS // world_size()
    rows = slice(rank() * share, (rank() + 1) * share)
    return Batch(
        batch.ids[rows],
        batch.product_codes[rows],
        pixels=batch.pixels[rows],
        more_views=(batch.more_views[0][rows],),
        labels=batch.labels[rows],
    )


def trained(objective: SelfSupervised) -> dict[str, torch.Tensor]:
    """Gradients of the first step, and all state after the last."""
    for name, parameter in objective.model.named_parameters():
        if name.split(".")[0] in objective.idle:
            parameter.requires_grad_(False)
    if world_size() > 1:
        synchronize_batchnorm(objective, torch.device("cpu"))
    wrapped: nn.Module = with_averaged_gradients(objective, torch.device("cpu"))
    learning = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer, found = torch.optim.SGD(learning.values(), lr=0.05), {}
    for step in range(STEPS):
        batch = own(joined(step))
        outputs = wrapped(batch, BatchRNG(step, size=ROWS))
        objective.loss(outputs, batch).backward()
        remembered = [objective.remember(outputs)]
        if step == 0:
            assert all(p.grad is not None for p in learning.values()), "something takes no part"
            found = {f"gradient of {name}": p.grad.clone() for name, p in learning.items()}
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(remembered, step / STEPS)
    return found | {name: value.clone() for name, value in objective.state_dict().items()}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: trained(objective) for name, objective in objectives().items()}
    if rank() == 0:
        torch.save({"world_size": world_size(), "found": found}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
