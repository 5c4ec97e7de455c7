"""Where an image tower begins: with timm's weights, or with those of a model that dualtower has trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dualtower.config import differences, from_dict
from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import ConfigError
from dualtower.hub.model_folder import CONFIG, is_model_folder, read_folder
from dualtower.models.config import ModelConfig
from dualtower.models.towers.image import ImageTowerConfig, pretrained_backbone

__all__ = ["pretrained_image_tower"]

_TOWER = "image_tower."


def pretrained_image_tower(
    config: ImageTowerConfig, settings: ImageSettings
) -> tuple[Mapping[str, Tensor], ImageSettings]:
    """The weights of the image tower that `config.pretrained` names, and the settings with its mean and deviation.

    Args:
        config: With `pretrained`: what timm knows, or a model folder of dualtower, such as ``runs/simclr/model``.
        settings: Size of the images, which stays.

    Returns:
        State dict of a tower.

    Raises:
        UnknownTower: timm has no model of that name.
        ConfigError: There are no such weights, or they belong to another architecture.
    """
    given = config.pretrained
    if isinstance(given, str) and is_model_folder(Path(given)):
        return _of_dualtower(config, settings, Path(given))
    backbone = pretrained_backbone(config, settings)
    brought = backbone.pretrained_cfg
    weights = {f"backbone.{name}": weight for name, weight in backbone.state_dict().items()}
    return weights, replace(settings, mean=tuple(brought["mean"]), std=tuple(brought["std"]))


def _of_dualtower(
    config: ImageTowerConfig, settings: ImageSettings, folder: Path
) -> tuple[Mapping[str, Tensor], ImageSettings]:
    parts = read_folder(folder)
    model = from_dict(ModelConfig, parts.config, where=f"{folder / CONFIG}: model")
    if model.image is None:
        raise ConfigError(f"image.pretrained = {str(folder)!r} is a model of texts alone; give one with an image tower")
    wanted, found = (replace(some.whole, pretrained=False, drop_path=0.0) for some in (config, model.image))
    if others := differences(wanted, found):
        raise ConfigError(
            f"image.pretrained = {str(folder)!r} holds another image tower than this run builds "
            f"({'; '.join(others[:3])}, the run's first); type the same --model.image options as its config.json has"
        )
    tower = {name.removeprefix(_TOWER): weight for name, weight in parts.weights.items() if name.startswith(_TOWER)}
    return tower, replace(settings, mean=model.image_settings.mean, std=model.image_settings.std)
