"""Small drawn products, whole and damaged, for the tests of what finds damage."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from dualtower.data.synthetic.damage import draw_damage

SIZE = (30, 40)
COLORS = ((40, 70, 170), (170, 40, 50), (40, 130, 70))


def shirt(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A plain shirt on a white ground, with a little noise, in one of three colors and never twice in one place."""
    rng = np.random.default_rng(seed)
    width, height = size
    image = Image.new("RGB", size, (246, 246, 246))
    pen = ImageDraw.Draw(image)
    left, top = width * rng.uniform(0.22, 0.26), height * rng.uniform(0.2, 0.23)
    color = COLORS[seed % 3]
    pen.rectangle([left, top, left + width * 0.5, top + height * 0.58], fill=color)
    pen.rectangle([left - width * 0.12, top, left + width * 0.62, top + height * 0.2], fill=color)
    noise = rng.integers(-4, 5, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image, int) + noise, 0, 255).astype(np.uint8))


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    """uint8 ``[N, 3, H, W]``."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2).copy())


def damaged(seeds: range, damages: tuple[str, ...]) -> tuple[torch.Tensor, np.ndarray]:
    """Damaged shirts, uint8 ``[N, 3, H, W]``, and where the damage is, bool ``[N, H, W]``."""
    found = [draw_damage(shirt(seed), damages[seed % len(damages)], seed=seed) for seed in seeds]
    return pixels_of([one.image for one in found]), np.stack([one.mask for one in found])


def whole(seeds: range) -> torch.Tensor:
    """Whole shirts, uint8 ``[N, 3, H, W]``."""
    return pixels_of([shirt(seed) for seed in seeds])
