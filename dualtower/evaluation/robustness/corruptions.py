"""Corruptions of images, five strengths each, in the spirit of ImageNet-C (D. Hendrycks and T. Dietterich 2019,
https://arxiv.org/abs/1903.12261).

They work on pixels at the size that a model sees. What is random is drawn for each row by itself and is the same at
every strength, which only decides how much of it is seen: a row gets the same noise in any batch, and more strength is
more of the same noise.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dualtower.errors import ConfigError, UnknownName

__all__ = ["CORRUPTIONS", "STRENGTHS", "Corruption", "corrupt", "row_rng", "to_image"]

STRENGTHS = (1, 2, 3, 4, 5)
_GRAY = 127


@dataclass(frozen=True)
class Corruption:
    """One way to spoil images.

    Attributes:
        apply: ``(pixels uint8 [B, 3, H, W], level, a generator per row) -> float or uint8 [B, 3, H, W]``.
        levels: What `apply` gets at strengths 1 to 5.
        meaning: What a level is, for reports.
    """

    apply: Callable[[np.ndarray, float, Sequence[np.random.Generator]], np.ndarray]
    levels: tuple[float, float, float, float, float]
    meaning: str


def corrupt(pixels: np.ndarray, name: str, strength: int, *, keys: Sequence[str], seed: int = 0) -> np.ndarray:
    """Corrupt a batch of images.

    Args:
        pixels: uint8 ``[B, 3, H, W]``.
        name: A key of `CORRUPTIONS`.
        strength: 1 to 5.
        keys: What tells the rows apart, such as their ids, length B: equal keys get equal noise.
        seed: Another seed is other noise.

    Returns:
        uint8 ``[B, 3, H, W]``.

    Raises:
        UnknownName: No such corruption.
        ConfigError: No such strength, or pixels that are no such batch.
    """
    if name not in CORRUPTIONS:
        raise UnknownName("corruption", name, CORRUPTIONS)
    if strength not in STRENGTHS:
        raise ConfigError(f"strength {strength} of a corruption is not possible; give 1 to {STRENGTHS[-1]}")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != len(keys):
        raise ConfigError(
            f"corrupt takes uint8 pixels [B, 3, H, W] and B keys, not {pixels.dtype} {list(pixels.shape)} "
            f"and {len(keys)} keys"
        )
    chosen = CORRUPTIONS[name]
    rngs = [row_rng(seed, name, key) for key in keys]
    changed = chosen.apply(pixels, chosen.levels[strength - 1], rngs)
    return changed if changed.dtype == np.uint8 else changed.round().clip(0, 255).astype(np.uint8)


def row_rng(seed: int, purpose: str, key: str) -> np.random.Generator:
    """Random numbers of one row for one purpose, the same on every machine and in any batch."""
    mixed = hashlib.blake2b(f"{seed} {purpose} {key}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(mixed, "big"))


def to_image(pixels: np.ndarray) -> Image.Image:
    """uint8 ``[3, H, W]`` as an image."""
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _noise(pixels: np.ndarray, level: float, rngs: Sequence[np.random.Generator]) -> np.ndarray:
    noise = np.stack([rng.standard_normal(pixels.shape[1:], np.float32) for rng in rngs])
    return pixels + np.float32(255 * level) * noise


def _blur(pixels: np.ndarray, level: float, rngs: Sequence[np.random.Generator]) -> np.ndarray:
    """Gaussian blur whose border is drawn out.

    Shifted images are added up one after the other: a convolution may round otherwise in a batch of another size.
    """
    sigma = level * min(pixels.shape[-2:])
    reach = max(1, round(3 * sigma))
    weights = np.exp(-(np.arange(-reach, reach + 1, dtype=np.float64) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    blurred = pixels.astype(np.float32)
    for axis in (2, 3):
        size = blurred.shape[axis]
        border = [(reach, reach) if axis == side else (0, 0) for side in range(4)]
        padded, blurred = np.pad(blurred, border, mode="edge"), np.zeros_like(blurred)
        for shift, weight in enumerate(weights):
            blurred += np.float32(weight) * np.take(padded, np.arange(shift, shift + size), axis=axis)
    return blurred


def _brightness(pixels: np.ndarray, level: float, rngs: Sequence[np.random.Generator]) -> np.ndarray:
    """Raise the value of HSV and keep hue and saturation: all channels grow by one factor; black becomes gray."""
    value = pixels.max(axis=1, keepdims=True).astype(np.float32)
    raised = np.minimum(value + np.float32(255 * level), 255)
    return np.where(value > 0, pixels * (raised / np.maximum(value, 1)), raised)


def _jpeg(pixels: np.ndarray, level: float, rngs: Sequence[np.random.Generator]) -> np.ndarray:
    changed = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        to_image(image).save(encoded := io.BytesIO(), "JPEG", quality=int(level))
        with Image.open(encoded) as decoded:
            changed[row] = np.asarray(decoded).transpose(2, 0, 1)
    return changed


def _occlusion(pixels: np.ndarray, level: float, rngs: Sequence[np.random.Generator]) -> np.ndarray:
    """A gray rectangle in the image's own shape; at each strength it lies within that of the next one."""
    changed = pixels.copy()
    for image, rng in zip(changed, rngs, strict=True):
        spans = []
        for length, place in zip(pixels.shape[-2:], rng.random(2), strict=True):
            side = length * np.sqrt(level)
            first = place * (length - side)
            spans.append(slice(int(np.floor(first)), int(np.ceil(first + side))))
        image[:, spans[0], spans[1]] = _GRAY
    return changed


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": Corruption(
        _noise, (0.08, 0.12, 0.18, 0.26, 0.38), "standard deviation of Gaussian noise, as a share of 255 (ImageNet-C)"
    ),
    # ImageNet-C's blur is invisible in an image of 60 pixels
    "blur": Corruption(
        _blur,
        (0.0125, 0.01875, 0.021875, 0.025, 0.03125),
        "standard deviation of a Gaussian blur, as a share of the shorter side (CIFAR-10-C)",
    ),
    "brightness": Corruption(
        _brightness, (0.1, 0.2, 0.3, 0.4, 0.5), "what is added to the value of HSV, as a share of 255 (ImageNet-C)"
    ),
    "jpeg": Corruption(_jpeg, (25, 18, 15, 10, 7), "quality of a JPEG of the image at the model's size (ImageNet-C)"),
    "occlusion": Corruption(_occlusion, (0.05, 0.1, 0.2, 0.3, 0.4), "share of the image under a gray rectangle"),
}
