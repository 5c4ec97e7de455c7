"""Towers: from token ids or pixels to features. Two dicts of constructors; any pair combines.

A text tower is a `Tower` with ``forward(input_ids [B, L], attention_mask [B, L]) -> Features``; its constructor
takes a `TextTowerConfig`. An image tower has ``forward(pixels [B, 3, H, W]) -> Features``; its constructor takes an
`ImageTowerConfig` and the `ImageSettings`. Constructors never download anything.
"""

from __future__ import annotations

from collections.abc import Callable

from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import UnknownTower
from dualtower.models.heads.projection import ProjectionHead
from dualtower.models.towers.base import Features, Tower
from dualtower.models.towers.bow import BagOfWordsTower
from dualtower.models.towers.config import TextTowerConfig
from dualtower.models.towers.image import ImageTowerConfig, TimmTower
from dualtower.models.towers.lstm import LSTMTower
from dualtower.models.towers.textcnn import TextCNNTower
from dualtower.models.towers.transformer import TransformerTower

__all__ = [
    "IMAGE_TOWERS",
    "TEXT_TOWERS",
    "Features",
    "ImageTowerConfig",
    "ProjectionHead",
    "TextTowerConfig",
    "Tower",
    "create_image_tower",
    "create_text_tower",
]

TEXT_TOWERS: dict[str, Callable[[TextTowerConfig], Tower]] = {
    "bert": TransformerTower,
    "bow": BagOfWordsTower,
    "lstm": LSTMTower,
    "textcnn": TextCNNTower,
}

IMAGE_TOWERS: dict[str, Callable[[ImageTowerConfig, ImageSettings], Tower]] = {
    "timm": TimmTower,  # takes every name that is not a key here
}


def create_text_tower(config: TextTowerConfig) -> Tower:
    """Build a text tower with fresh weights.

    Raises:
        UnknownTower: No text tower of that name.
        ConfigError: A setting does not fit the tower.
    """
    if config.name not in TEXT_TOWERS:
        raise UnknownTower("text tower", config.name, TEXT_TOWERS)
    return TEXT_TOWERS[config.name](config)


def create_image_tower(config: ImageTowerConfig, settings: ImageSettings) -> Tower:
    """Build an image tower with fresh weights. A name that is not in `IMAGE_TOWERS` is one of timm's.

    Raises:
        UnknownTower: Neither in IMAGE_TOWERS nor in timm.
        ConfigError: An option does not fit the tower.
    """
    return IMAGE_TOWERS.get(config.name, TimmTower)(config, settings)
