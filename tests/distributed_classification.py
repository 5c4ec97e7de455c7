"""Run by torchrun from `test_label_finetuning`: gradients of DDP ranks against one process on the joined batch."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import factories
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dualtower import DualTower, TrainConfig, distributed
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import rank, world_size
from dualtower.objectives.classification import Classification
from dualtower.training.optim import freeze_locked
from dualtower.types import Batch

ROWS = 12


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DualTower(replace(factories.config("bow", "vit"), text=None)).double()
    counts = np.array([5, 3, 1])
    together = Classification(
        model, label="color", classes=["a", "b", "c"], counts=counts, logit_adjustment=0.7
    ).double()
    freeze_locked(together, TrainConfig(steps=1))
    alone = copy.deepcopy(together)
    pixels = torch.rand(ROWS, 3, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 255
    labels = torch.tensor([0, 1, -1, 2, 0, 0, -1, -1, -1, -1, 1, 2]).unsqueeze(1)  # ranks know of different numbers
    whole = Batch(tuple(map(str, range(ROWS))), torch.arange(ROWS), pixels=pixels, labels=labels)
    with pytest.MonkeyPatch.context() as patch:  # one process on the joined batch
        patch.setattr(distributed, "world_size", lambda: 1)
        alone.loss(alone(whole, BatchRNG(3, size=ROWS)), whole).backward()
    mine = slice(rank() * ROWS // world_size(), (rank() + 1) * ROWS // world_size())
    own = whole.each(lambda tensor: tensor[mine])
    wrapped = DistributedDataParallel(together)  # which must live as long as its hooks
    together.loss(wrapped(own, BatchRNG(3, size=ROWS)), own).backward()
    errors = {}
    for (name, parameter), wanted in zip(together.named_parameters(), alone.parameters(), strict=True):
        if parameter.requires_grad and parameter.numel():
            assert parameter.grad is not None and wanted.grad is not None, name
            largest = wanted.grad.abs().max().item() or 1.0
            errors[name] = (parameter.grad - wanted.grad).abs().max().item() / largest
    if rank() == 0:
        print(json.dumps({"world_size": world_size(), "errors": errors}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
