"""Batch normalization over all ranks: the same network as before, and the same training as one process."""

from __future__ import annotations

import json
from pathlib import Path

import distributed_training
import factories
import pytest
import torch
from processes import torchrun
from torch import nn

from dualtower import ImageTowerConfig
from dualtower.models.towers import create_image_tower
from dualtower.training.batchnorm import synchronize_batchnorm

BACKBONES = {
    "gernet_s": factories.IMAGE["gernet"].options,
    "resnet10t": factories.IMAGE["resnet"].options,
    "mobilenetv3_small_050": {},
    "efficientnet_lite0": {},
    "regnety_002": {},
    "densenet121": {"growth_rate": 4, "block_config": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", BACKBONES)
def test_in_evaluation_mode_nothing_changes(name: str, device: str) -> None:
    """The layers of both devices compute on the CPU as long as they do not train."""
    torch.manual_seed(0)
    tower = create_image_tower(ImageTowerConfig(name=name, options=BACKBONES[name]), factories.SETTINGS)
    layers = [m for m in tower.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:  # fresh statistics would hide a layer that forgets its own
        nn.init.uniform_(layer.running_mean, -1, 1)
        nn.init.uniform_(layer.running_var, 0.5, 2)
        nn.init.uniform_(layer.weight, 0.5, 2)
    pixels = torch.rand(4, 3, 40, 30) * 255
    names = list(tower.state_dict())
    with torch.no_grad():
        before = tower.eval()(pixels).pooled
        synchronize_batchnorm(tower, torch.device(device))
        after = tower(pixels).pooled
    assert len(layers) >= 5 and before.std() > 0
    made = [type(m).__name__ for m in tower.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(made) == len(layers) and all("SyncBatchNorm" in name for name in made)
    assert torch.equal(before, after)
    assert list(tower.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("network", ["gernet", "resnet"])
def test_two_processes_train_like_one_with_batch_statistics(network: str, tmp_path: Path) -> None:
    """Weights, running statistics and their averages of two ranks of 8 rows equal those of one process of 16."""
    whole, halves = tmp_path / "1", tmp_path / "2"
    distributed_training.main(whole, network, sync_batchnorm=True, lock_image=0.0)
    torchrun(distributed_training.__file__, halves, "--image", network, "--sync-batchnorm")
    told = [json.loads((out / "result.json").read_text())["world_size"] for out in (whole, halves)]
    assert told == [1, 2]
    one, two = (torch.load(out / "model.pt", weights_only=True) for out in (whole, halves))
    assert any(name.endswith("running_var") for name in one)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-9, atol=1e-9, msg=name)
