"""Any timm backbone as an image tower."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import ConfigError, UnknownTower
from dualtower.models.towers.base import Features, Tower
from dualtower.models.towers.fuse_batchnorm import fuse_batch_norms

__all__ = ["ImageTowerConfig", "TimmTower", "pretrained_backbone"]

SMALL = 80 * 80
"""Pixels of images up to which dense convolutions infer faster in contiguous memory on a CPU (by 6 to 30 % at 80x60;
at 96x96 there is nothing to gain any more, and at 224x224 `channels_last` is faster by 20 to 50 %)."""


@dataclass(frozen=True)
class ImageTowerConfig:
    """Which image tower. The size of the images stands in the image settings."""

    name: str = "resnet18"
    """Any model of timm: resnet18, vit_small_patch16_224, swin_tiny_patch4_window7_224, convnext_tiny ..."""
    pretrained: bool | str = False
    """True for timm's weights of that name, or a file, a folder or a Hub id of a timm model, or the folder of a model
    that dualtower has trained, such as runs/simclr/model."""
    pooling: Literal["auto", "avg", "token", "max"] = "auto"
    """How the feature map becomes one vector; auto is the backbone's own way, `token` is for ViTs."""
    stage: int = -1
    """Which stage of the backbone (of a ViT, which block) the vector is made of, from the end: -1 is the last one, -2
    the one before, where a tower that learned without labels knows more of them. With -1 alone all of it is trained."""
    grid: int = 1
    """The vector holds the mean of each of so many cells per side, as it then knows where on the image something is;
    with 2 it is four times as long."""
    drop_path: float = 0.0
    """Stochastic depth while training."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of timm.create_model, such as layers, channels, stem_width, depth, embed_dim. On the command line
    all of them at once, as JSON: --model.image.options '{"layers": [1, 1, 1, 1]}', or {} for none."""
    pad_to: int = 1
    """Pad images at the right and bottom to a multiple of this; patches are always filled."""
    channels_last: bool | None = None
    """Memory order of convolutions. None is channels_last, unless `train.precision auto` finds the other one faster."""

    def __post_init__(self) -> None:
        for name in ("pad_to", "grid"):
            if getattr(self, name) < 1:
                raise ConfigError(f"image.{name} is {getattr(self, name)}; it must be at least 1")
        if self.stage >= 0:
            raise ConfigError(f"image.stage is {self.stage}; it counts from the end: -1 is the last, -2 the one before")
        if not self.is_whole and self.pooling not in ("auto", "avg"):
            raise ConfigError(
                f"image.pooling is {self.pooling}, and a stage or a grid of cells is averaged; leave it at auto"
            )

    @property
    def is_whole(self) -> bool:
        """Whether the vector is what the backbone's own pooling makes of its last stage."""
        return self.stage == -1 and self.grid == 1

    @property
    def whole(self) -> ImageTowerConfig:
        """The same tower with the vector that it is trained by."""
        return replace(self, stage=-1, grid=1)


class TimmTower(Tower):
    """A timm backbone that takes raw pixels; the weights are fresh and nothing is downloaded.

    Args:
        config: Name and options of the backbone.
        settings: Size, mean and standard deviation of the images. Convolutional backbones and most ViTs take
            images of other sizes too.

    Raises:
        UnknownTower: timm has no model of that name.
        ConfigError: The model does not take one of the options, or not this size.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, config: ImageTowerConfig, settings: ImageSettings) -> None:
        super().__init__()
        self.backbone = _create(config, settings)
        self.stage, self.grid = config.stage, config.grid
        self.width = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        self.token_width = self.backbone.num_features
        if not config.is_whole:
            if self.stage_count < -self.stage:
                raise ConfigError(
                    f"image.stage is {self.stage} and image.grid {self.grid}, and of {config.name!r} "
                    + (f"there are {self.stage_count} stages" if self.stage_count else "timm shows no stages")
                    + "; leave them at -1 and 1"
                )
            self.token_width = self.backbone.feature_info[self.stage]["num_chs"]
            self.width = self.token_width * self.grid**2
        self.multiple = _multiple(self.backbone, config)
        self.order_memory(channels_last=config.channels_last is not False)
        self.size = _rounded((settings.height, settings.width), self.multiple)
        self.is_small = settings.height * settings.width <= SMALL
        # (pixel / 255 - mean) / std as one multiplication and one addition
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (settings.mean, settings.std))
        self.register_buffer("factor", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Images as the backbone takes them: of its mean and deviation, and padded to whole patches."""
        pixels = pixels.to(dtype=self.shift.dtype, memory_format=self.memory_format)
        pixels = torch.addcmul(self.shift, pixels, self.factor)
        below, right = -pixels.shape[2] % self.multiple[0], -pixels.shape[3] % self.multiple[1]
        return F.pad(pixels, (0, right, 0, below)) if below or right else pixels

    def forward(self, pixels: Tensor) -> Features:
        """Encode images ``[B, 3, H, W]``, uint8 or float in 0..255."""
        if self.stage != -1 or self.grid != 1:
            (features,) = self.stages(pixels, [self.stage_count + self.stage])
            pooled = F.adaptive_avg_pool2d(features, self.grid).flatten(1)
            return Features(pooled, features.flatten(2).transpose(1, 2), None, (features.shape[2], features.shape[3]))
        pixels = self.normalized(pixels)
        features = self.backbone.forward_features(pixels)
        pooled = self.backbone.forward_head(features, pre_logits=True)
        tokens, grid = self._tokens(features, (pixels.shape[2], pixels.shape[3]))
        return Features(pooled, tokens, None, grid)

    @property
    def stage_count(self) -> int:
        """Number of stages (of a ViT, blocks) whose feature maps `stages` can give; 0 where the backbone hides them."""
        known = hasattr(self.backbone, "forward_intermediates") and hasattr(self.backbone, "feature_info")
        return len(self.backbone.feature_info) if known else 0

    def widest_grid(self, stage: int, most: int) -> int:
        """2, or 1 where 2 x 2 cells of a stage's channels are more than so many numbers."""
        return 2 if 4 * int(self.backbone.feature_info[stage]["num_chs"]) <= most else 1

    def stages(self, pixels: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Feature maps of some stages of the backbone, as detectors and segmenters read them.

        Args:
            pixels: Images ``[B, 3, H, W]``, uint8 or float in 0..255.
            numbers: Which stages, from 0 at the image to `stage_count` - 1 at the output, ascending.

        Returns:
            One ``[B, C, h, w]`` each, of the image with what `forward` pads it by.
        """
        found: list[Tensor] = self.backbone.forward_intermediates(
            self.normalized(pixels), indices=list(numbers), stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return found

    def for_inference(self) -> TimmTower:
        """See `Tower.for_inference`: without batch normalizations, and in the memory order that is faster then."""
        tower = copy.deepcopy(self).eval().requires_grad_(False)
        fuse_batch_norms(tower.backbone, tower.shift.new_zeros(1, 3, *tower.size))
        convolutions = [module for module in tower.modules() if isinstance(module, nn.Conv2d)]
        if self.is_small and all(convolution.groups == 1 for convolution in convolutions):
            tower.order_memory(channels_last=False)
        return tower

    def order_memory(self, *, channels_last: bool) -> None:
        """See `Tower.order_memory`."""
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self.memory_format)

    def _tokens(self, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """View a backbone's last features as ``[B, T, W]``, without class and register tokens, and their grid."""
        if features.ndim == 3:
            tokens = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            columns = max(1, round(math.sqrt(tokens.shape[1] * size[1] / size[0])))  # patches are square
            return tokens, (tokens.shape[1] // columns, columns)
        if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2), (features.shape[1], features.shape[2])
        return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])

    def layers_above(self, name: str) -> int:
        """See `Tower.layers_above`; the layers are those by which timm groups parameters."""
        from timm.models import group_parameters

        if not hasattr(self.backbone, "group_matcher"):
            return 1
        matcher = self.backbone.group_matcher(coarse=False)
        layers = group_parameters(self.backbone, matcher, reverse=True)
        return int(max(layers.values()) - layers[name.removeprefix("backbone.")] + 1)


def pretrained_backbone(config: ImageTowerConfig, settings: ImageSettings) -> Any:
    """Create the backbone with the weights that `config.pretrained` names.

    Returns:
        A timm model; its `pretrained_cfg` knows the mean and standard deviation that it was trained with.

    Raises:
        UnknownTower: timm has no model of that name.
        ConfigError: There are no such weights, or they belong to another architecture.
    """
    given = config.pretrained
    source, extra = config.name, {}
    if isinstance(given, str):
        if Path(given).is_file():
            extra = {"pretrained_cfg_overlay": {"file": given}}
        else:
            source = f"local-dir:{given}" if Path(given).is_dir() else f"hf-hub:{given.removeprefix('hf-hub:')}"
    try:
        backbone = _create(config, settings, source=source, pretrained=True, **extra)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no weights for image tower {config.name!r} in image.pretrained = {given!r}; "
            f"give True, a file, or a folder or Hub id of a timm model ({error})"
        ) from error
    found, wanted = backbone.pretrained_cfg["architecture"], config.name.partition(".")[0]
    if found != wanted:
        raise ConfigError(f"image.pretrained = {given!r} holds a {found!r}; type --model.image.name {found}")
    return backbone


def _create(config: ImageTowerConfig, settings: ImageSettings, *, source: str | None = None, **extra: Any) -> Any:
    """Create the timm model; where its weights depend on the size, for whole patches."""
    import timm

    if not timm.is_model(config.name):
        raise UnknownTower("image tower", config.name, timm.list_models(), "timm.list_models() has them all.")
    options = {"num_classes": 0, **{k: _as_timm(v) for k, v in config.options.items()}, **extra}
    if config.pooling != "auto":
        options["global_pool"] = config.pooling
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    size = _rounded((settings.height, settings.width), (config.pad_to, config.pad_to))
    known = timm.get_pretrained_cfg(config.name)
    try:
        if known is None or not known.fixed_input_size:
            return timm.create_model(source or config.name, **options)
        backbone = _create_sized(source or config.name, size, options)
        whole = _rounded(size, _multiple(backbone, config))
        return backbone if whole == size else _create_sized(source or config.name, whole, options)
    except (TypeError, AssertionError) as error:
        raise ConfigError(
            f"timm cannot build {config.name!r} for {size[0]}x{size[1]} pixels with these options: {error}"
        ) from error


def _create_sized(name: str, size: tuple[int, int], options: Mapping[str, Any]) -> Any:
    """Create a backbone whose weights depend on the size; if it can, it takes other sizes later."""
    import timm

    try:
        return timm.create_model(name, img_size=size, dynamic_img_size=True, **options)
    except TypeError:  # many models know no dynamic size
        return timm.create_model(name, img_size=size, **options)


def _multiple(backbone: Any, config: ImageTowerConfig) -> tuple[int, int]:
    """What height and width must be multiples of: the patch, where there is one, and `pad_to`."""
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", 1)
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return math.lcm(height, config.pad_to), math.lcm(width, config.pad_to)


def _rounded(size: tuple[int, int], multiple: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // m) * m for side, m in zip(size, multiple, strict=True))
    return height, width


def _as_timm(value: Any) -> Any:
    """JSON and YAML know neither timm's tuples nor the block configs of its ByobNet (``{type, d, c, s, gs, br}``)."""
    if isinstance(value, list | tuple):
        return tuple(_as_timm(v) for v in value)
    if isinstance(value, Mapping) and {"type", "d", "c"} <= value.keys():
        from timm.models.byobnet import ByoBlockCfg

        return ByoBlockCfg(**value)
    return value
