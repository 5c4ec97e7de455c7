"""Damage as what something that knows clean images alone cannot draw again."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.curation.damage.scorer import DamageScorer, batches, smoothed

__all__ = ["PCAReconstructor", "ReconstructionScorer", "Reconstructor"]

_SIDE = 80
"""Longer side that principal components are found at, in pixels: a component has as many numbers as an image."""


class Reconstructor(Protocol):
    """Whatever draws images again: an autoencoder, or principal components."""

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Draw uint8 ``[B, 3, H, W]`` again, float of the same shape in 0..255."""
        ...


class PCAReconstructor:
    """Draws an image as the mean of clean ones plus their first principal components: a linear autoencoder.

    No training loop is needed, and it is no more than that: it knows large shapes and shades, and blurs all details.
    (P. Baldi and K. Hornik, "Neural networks and principal component analysis", Neural Networks 2, 1989.)

    Args:
        clean: uint8 ``[N, 3, H, W]``.
        components: How many; fewer where there are fewer images.
        seed: Seed of the randomized decomposition.
    """

    def __init__(self, clean: Tensor, *, components: int = 64, seed: int = 0) -> None:
        height, width = clean.shape[2:]
        scale = min(1.0, _SIDE / max(height, width))
        self.size = (max(1, round(height * scale)), max(1, round(width * scale)))
        images = torch.cat([self._small(some).flatten(1) for some in batches(clean)])
        self.mean = images.mean(0)
        images -= self.mean
        with torch.random.fork_rng(devices=[]):  # the decomposition draws from the global state
            torch.manual_seed(seed)
            _, _, self.components = torch.pca_lowrank(images, q=min(components, *images.shape), center=False)

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """See `Reconstructor.reconstruct`."""
        images = self._small(pixels).flatten(1) - self.mean
        drawn = images @ self.components @ self.components.T + self.mean
        return _resized(drawn.unflatten(1, (3, *self.size)), (pixels.shape[2], pixels.shape[3])).clamp(0, 255)

    def _small(self, pixels: Tensor) -> Tensor:
        return _resized(pixels.float(), self.size)


class ReconstructionScorer(DamageScorer):
    """The largest error of a reconstruction, averaged over channels and smoothed, in levels of 0..255.

    Args:
        reconstructor: Draws images again; None finds the principal components of the clean images.
        components: How many of them.
    """

    def __init__(self, reconstructor: Reconstructor | None = None, *, components: int = 64) -> None:
        self.given, self.components = reconstructor, components

    def _fit(self, clean: Tensor) -> None:
        self.reconstructor = self.given or PCAReconstructor(clean, components=self.components)

    def score(self, pixels: Tensor) -> np.ndarray:
        """See `DamageScorer.score`."""
        found: np.ndarray = self.heat_maps(pixels).max((1, 2))
        return found

    @torch.inference_mode()
    def heat_maps(self, pixels: Tensor) -> np.ndarray:
        """See `DamageScorer.heat_maps`."""
        errors = [(self.reconstructor.reconstruct(some) - some.float()).abs().mean(1) for some in batches(pixels)]
        return smoothed(torch.cat(errors)).numpy()


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
