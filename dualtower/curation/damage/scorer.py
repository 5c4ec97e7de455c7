"""What every scorer of damage is: fitted on clean images, it gives others a score and a heat map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from dualtower.errors import DataError

__all__ = ["METHODS", "DamageScorer", "Method", "batches", "smoothed", "to_size"]

Method = Literal["knn", "patch", "reconstruction"]
METHODS: tuple[str, ...] = get_args(Method)

BATCH = 64
_SIGMA = 4 / 224
"""Deviation of the Gaussian that smooths heat maps, as a share of the shorter side: PatchCore's (section 3.3)."""


class DamageScorer(ABC):
    """Scores images by how unlike clean ones they are; a higher score is more damage.

    Pixels are uint8 ``[N, 3, H, W]`` of one size. Scores of one fitted scorer compare with each other, not with those
    of another.
    """

    def fit(self, clean: Tensor) -> None:
        """Learn what whole products look like.

        Raises:
            DataError: There are fewer than two images, or all of them are equal.
        """
        if len(clean) < 2:
            raise DataError(f"{len(clean)} clean images are too few to know damage by; give two or more")
        if bool((clean == clean[:1]).all()):
            raise DataError(f"all {len(clean):,} clean images are equal, so that any other one would count as damaged")
        self._fit(clean)

    @abstractmethod
    def _fit(self, clean: Tensor) -> None: ...

    @abstractmethod
    def score(self, pixels: Tensor) -> np.ndarray:
        """Score images, float32 ``[N]``."""

    @abstractmethod
    def heat_maps(self, pixels: Tensor) -> np.ndarray:
        """Say where the damage is, float32 ``[N, H, W]``; higher is more, on one scale for all images."""


def batches(pixels: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    """Cut ``[N, ...]`` into batches."""
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def to_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps ``[N, h, w]`` bilinearly to ``[N, *size]``."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def smoothed(maps: Tensor) -> Tensor:
    """Smooth maps ``[N, H, W]`` with a Gaussian; edges are continued."""
    from torchvision.transforms.functional import gaussian_blur

    sigma = _SIGMA * min(maps.shape[1:])
    reach = min(max(1, round(3 * sigma)), min(maps.shape[1:]) - 1)
    blurred: Tensor = gaussian_blur(maps, [2 * reach + 1, 2 * reach + 1], [sigma, sigma])
    return blurred
