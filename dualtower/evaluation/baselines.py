"""What a model of images must beat: its own architecture before it learned anything, and the pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dualtower.data.transforms.images import ImageSettings, open_image, to_pixels
from dualtower.models.dual_tower import DualTower
from dualtower.threads import single_thread_pool

__all__ = ["raw_pixels", "with_fresh_weights"]

RAW_SIDE = 16


def with_fresh_weights(model: DualTower, *, seed: int = 0) -> DualTower:
    """A model of the same architecture that has learned nothing, where the model is and in its precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = DualTower(model.config, model.tokenizer).eval()
    fresh.precision = model.precision
    return fresh.to(model.device)


def raw_pixels(images: Sequence[Any], *, side: int = RAW_SIDE) -> np.ndarray:
    """The images themselves as vectors, colors around the mean of each image.

    Args:
        images: Encoded bytes, paths or PIL images.
        side: Height and width that they are shrunk to, whatever their aspect ratio.

    Returns:
        float32 ``[N, 3 * side * side]``.
    """
    settings = ImageSettings(height=side, width=side)
    with single_thread_pool() as pool:
        pixels = list(pool.map(lambda image: to_pixels(open_image(image, near=side), settings).ravel(), images))
    values = np.stack(pixels).astype(np.float32)
    return values - values.mean(1, keepdims=True)
