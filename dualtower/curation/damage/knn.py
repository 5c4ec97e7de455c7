"""Damage as the distance of the whole image's vector to its nearest clean ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dualtower.curation.damage.scorer import BATCH, DamageScorer, batches, to_size
from dualtower.inference.explain import hide_windows
from dualtower.models.encoding import evaluation_mode
from dualtower.types import Batch

if TYPE_CHECKING:
    from dualtower.models.dual_tower import DualTower

__all__ = ["KNNScorer", "image_vectors"]


class KNNScorer(DamageScorer):
    """The mean distance (1 - cosine) to the nearest clean images, in the embedding space of the model.

    The heat map asks what that distance loses when one window of the image after the other shows the nearest clean
    image instead (as occlusion does with gray, https://arxiv.org/abs/1311.2901): where that brings the image nearer to
    clean ones, it is unlike them.

    Args:
        model: Any model with an image tower.
        neighbors: How many nearest clean images; all where there are fewer.

    Raises:
        ConfigError: The model has no image tower.
    """

    def __init__(self, model: DualTower, *, neighbors: int = 10) -> None:
        model.config.require("image", "damage is looked for in images")
        self.model, self.neighbors = model.for_inference(), neighbors

    def _fit(self, clean: Tensor) -> None:
        self.pixels, self.clean = clean, image_vectors(self.model, clean)

    def score(self, pixels: Tensor) -> np.ndarray:
        """See `DamageScorer.score`."""
        return self._distances(pixels).numpy()

    def heat_maps(self, pixels: Tensor) -> np.ndarray:
        """See `DamageScorer.heat_maps`."""
        nearest = (image_vectors(self.model, pixels) @ self.clean.T).argmax(1)
        whole, maps = self._distances(pixels), []
        for image, beside, distance in zip(pixels, self.pixels[nearest], whole, strict=True):
            hidden, windows = hide_windows(image, beside)
            falls = distance - self._distances(hidden)
            maps.append((falls[:, None, None] * windows).sum(0) / windows.sum(0))
        height, width = pixels.shape[2:]
        return to_size(torch.stack(maps), (height, width)).numpy()

    def _distances(self, pixels: Tensor) -> Tensor:
        alike = image_vectors(self.model, pixels) @ self.clean.T
        return 1 - alike.topk(min(self.neighbors, len(self.clean)), dim=1).values.mean(1)


def image_vectors(model: DualTower, pixels: Tensor) -> Tensor:
    """Embed uint8 ``[N, 3, H, W]`` to float32 ``[N, D]`` of unit length, on the CPU."""
    found = []
    with evaluation_mode(model):
        for some in batches(pixels, BATCH):
            batch = Batch(tuple(map(str, range(len(some)))), torch.zeros(len(some)), pixels=some)
            embedded = model(batch.to(model.device)).image
            found.append(torch.nn.functional.normalize(embedded.float(), dim=1).cpu())
    return torch.cat(found)
