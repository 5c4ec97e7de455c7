"""From an image's vector back to the image."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualtower.errors import ConfigError

__all__ = ["DecoderConfig", "ImageDecoder"]


@dataclass(frozen=True)
class DecoderConfig:
    """How an image is made of a vector. It is saved with the model."""

    width: int = 256
    """Channels of the smallest feature map; each one twice as large has half as many."""
    stages: int = 4
    """How often the feature map is doubled on the way to the image."""
    bottleneck: int | None = None
    """Width of the vector that all must pass through; None is that of the features."""

    def __post_init__(self) -> None:
        for name in ("width", "stages", "bottleneck"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"decoder.{name} is {value}; it must be at least 1")


class ImageDecoder(nn.Module):
    """Reconstruct images of one size from vectors: a matrix, then convolutions between doublings.

    Args:
        config: Widths and number of doublings.
        width: Width of the vectors.
        size: Height and width of the images.
    """

    def __init__(self, config: DecoderConfig, *, width: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.first = tuple(-(-side // 2**config.stages) for side in size)
        channels = [max(16, config.width >> stage) for stage in range(config.stages + 1)]
        inner = config.bottleneck or width
        self.narrow = nn.Linear(width, inner) if config.bottleneck else nn.Identity()
        self.widen = nn.Linear(inner, channels[0] * self.first[0] * self.first[1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in itertools.pairwise(channels)
        )
        self.out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Reconstruct from ``[B, W]``: images ``[B, 3, H, W]`` in 0..1."""
        maps = self.widen(self.narrow(features)).view(len(features), -1, *self.first)
        for stage in self.stages:
            maps = stage(maps)
        height, width = self.size
        image: Tensor = torch.sigmoid(self.out(maps))
        return image[..., :height, :width]  # the doublings lead to a size that may be a few pixels larger
