"""Augmentation of whole batches on the model's device, drawn from a generator of the caller.

A preset is a function ``(pixels [B, 3, H, W] float in 0..255, draw, size, strength) -> pixels [B, 3, h, w]``. Every
random number comes from `BatchRNG`, which is seeded by (seed, step, rank): a resumed run draws what the uninterrupted
one would have drawn.
Crop, rotation, flip and resize are one affine resampling, so a smaller output size (progressive resizing) costs nothing
extra, and a crop keeps the detail of images that were read larger than they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AUGMENTATIONS", "PRESETS", "Augmentation", "BatchRNG", "augment", "drop_tokens", "erase", "smallest_crop"]

Augmentation = Literal["product", "simclr", "apparel", "electronics", "jewelry", "none"]
PRESETS: tuple[Augmentation, ...] = get_args(Augmentation)

_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


class BatchRNG:
    """Random numbers for one batch, equal for equal seeds on every device (they are drawn on the CPU).

    Args:
        seeds: Integers that identify the batch, such as (seed, step, rank).
        size: B, numbers per draw.
        device: Where the numbers are needed.
    """

    def __init__(self, *seeds: int, size: int, device: torch.device | str = "cpu") -> None:
        mixed = 0
        for seed in seeds:  # an odd multiplier spreads neighboring steps over the 63-bit seed space
            mixed = (mixed * 6364136223846793005 + seed + 1442695040888963407) & (2**63 - 1)
        self.generator = torch.Generator().manual_seed(mixed)
        self.size, self.device = size, device

    def uniform(self, low: float, high: float) -> Tensor:
        """``[B]`` numbers, uniform between low and high."""
        numbers = torch.rand(self.size, generator=self.generator)
        return self._sent(low + (high - low) * numbers)

    def chances(self, probability: float, count: int) -> Tensor:
        """``[B, count]`` booleans, true with that probability."""
        return self._sent(torch.rand(self.size, count, generator=self.generator) < probability)

    def gumbel(self, count: int) -> Tensor:
        """``[B, count]`` standard Gumbel numbers."""
        uniform = torch.rand(self.size, count, generator=self.generator).clamp_(1e-20, 1 - 1e-7)
        return self._sent(-(-uniform.log()).log())

    def normal(self, *shape: int) -> Tensor:
        """``[B, *shape]`` standard normal numbers."""
        return self._sent(torch.randn(self.size, *shape, generator=self.generator))

    def of_rows(self, rows: Tensor) -> BatchRNG:
        """Draws for some rows of the batch, int64 ``[R]``, from the same generator.

        It draws for all rows and keeps those of `rows`: a row's numbers do not depend on which others there are.
        """
        return _OfRows(self, rows)

    def _sent(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.device, non_blocking=True)  # or every draw would wait for the step before

    def chance(self, probability: float) -> Tensor:
        """``[B]`` booleans, true with that probability."""
        return self.uniform(0, 1) < probability


class _OfRows(BatchRNG):
    def __init__(self, whole: BatchRNG, rows: Tensor) -> None:
        self.generator, self.size, self.device, self.rows = whole.generator, whole.size, whole.device, rows.cpu()

    def _sent(self, numbers: Tensor) -> Tensor:
        return super()._sent(numbers[self.rows])


def augment(
    pixels: Tensor,
    name: Augmentation,
    rng: BatchRNG,
    *,
    size: tuple[int, int] | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Apply the preset `name` to a batch.

    Args:
        pixels: uint8 or float ``[B, 3, H, W]`` in 0..255.
        name: ``product`` (gentle zoom, shift and flip; keeps color), ``simclr`` (strong crop and color; Chen et al.
            2020), ``apparel`` (moderate crop, rotation, flip: the garment stays whole), ``electronics`` (noise, blur
            and small shifts of color: shape and ports stay where they are), ``jewelry`` (close and turned any way, in
            other light; the color of the metal stays) or ``none``.
        rng: Source of randomness for this batch.
        size: Output (height, width); default the input's.
        strength: How far zoom, shift and colors may go, as a share of the preset's own reach; flips stay.

    Returns:
        float32 ``[B, 3, h, w]`` in 0..255.
    """
    size = size or (pixels.shape[-2], pixels.shape[-1])
    return AUGMENTATIONS[name](pixels.float(), rng, size, strength)


def erase(pixels: Tensor, rng: BatchRNG, *, share: float) -> Tensor:
    """Lay a rectangle of one random color over a share of the images (Zhong et al., 2017, arXiv:1708.04896).

    So no product is learned by a single detail. The rectangle takes 2 to 25 % of the image.

    Args:
        pixels: ``[B, 3, H, W]`` in 0..255.
        rng: Source of randomness for this batch.
        share: Probability of each image.
    """
    height, width = pixels.shape[-2:]
    area, stretch = rng.uniform(0.02, 0.25), rng.uniform(-1.2, 1.2).exp()
    high, wide = (area * stretch).sqrt().clamp(max=1) * height, (area / stretch).sqrt().clamp(max=1) * width
    inside = []
    for length, side in ((height, high), (width, wide)):
        start, place = rng.uniform(0, 1) * (length - side), torch.arange(length, device=pixels.device)
        inside.append((place >= start[:, None]) & (place < (start + side)[:, None]))
    covered = (rng.chance(share)[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    color = torch.stack([rng.uniform(0, 255) for _ in range(3)], 1)[:, :, None, None]
    return torch.where(covered, color, pixels)


def drop_tokens(
    tokens: Mapping[str, Tensor], rng: BatchRNG, *, share: float, unknown: int, kept: Set[int]
) -> dict[str, Tensor]:
    """Replace a random share of the tokens by the unknown token, so that no title is learned by a single word.

    Args:
        tokens: ``input_ids`` and ``attention_mask``, int64 ``[B, L]``.
        rng: Source of randomness for this batch.
        share: Probability of each token.
        unknown: Id of the unknown (or mask) token.
        kept: Ids of special tokens, which are never dropped.
    """
    ids = tokens["input_ids"]
    special = torch.isin(ids, torch.tensor(sorted(kept), device=ids.device))
    dropped = rng.chances(share, ids.shape[1]) & ~special
    return {**tokens, "input_ids": ids.masked_fill(dropped, unknown)}


def _none(pixels: Tensor, rng: BatchRNG, size: tuple[int, int], strength: float) -> Tensor:
    if size == tuple(pixels.shape[-2:]):
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


def _product(pixels: Tensor, rng: BatchRNG, size: tuple[int, int], strength: float) -> Tensor:
    # Magnified as often as shrunk: products fill their photos, and a model that only ever saw crops would meet them
    # smaller than it knows them when it is used (https://arxiv.org/abs/1906.06423).
    zoom, stretch = 1.25**strength, 1.1**strength
    return _crop_and_flip(pixels, rng, size, area=(1 / zoom, zoom), ratio=(1 / stretch, stretch), shift=0.06 * strength)


def _apparel(pixels: Tensor, rng: BatchRNG, size: tuple[int, int], strength: float) -> Tensor:
    stretch = 1.15**strength
    pixels = _crop_and_flip(
        pixels, rng, size, area=(0.5**strength, 1.0), ratio=(1 / stretch, stretch), rotation=15 * strength
    )
    jittered = _jitter(pixels, rng, strength=0.4 * strength)
    pixels = torch.where(_as_mask(rng.chance(0.8)), jittered, pixels)
    return torch.where(_as_mask(rng.chance(0.1)), _gray(pixels).expand_as(pixels), pixels)


def _electronics(pixels: Tensor, rng: BatchRNG, size: tuple[int, int], strength: float) -> Tensor:
    zoom = 1.3**strength
    pixels = _crop_and_flip(
        pixels, rng, size, area=(1 / zoom, 1.1), ratio=(1.0, 1.0), shift=0.04 * strength, flip=False
    )
    pixels = _jitter(pixels, rng, strength=0.25 * strength)
    pixels = torch.where(_as_mask(rng.chance(0.5)), _blur(pixels, rng), pixels)
    noise = rng.normal(*pixels.shape[1:]) * _as_mask(rng.uniform(0, 20 * strength))
    return (pixels + noise).clamp(0, 255)


def _jewelry(pixels: Tensor, rng: BatchRNG, size: tuple[int, int], strength: float) -> Tensor:
    # Gold and silver are the same shape in another color: light may change, hue and saturation may not.
    pixels = _crop_and_flip(pixels, rng, size, area=(0.3**strength, 1.0), ratio=(1.0, 1.0), rotation=180 * strength)
    pixels = (pixels * _as_mask(rng.uniform(1 - 0.4 * strength, 1 + 0.4 * strength))).clamp(0, 255)
    return torch.where(_as_mask(rng.chance(0.5)), _blur(pixels, rng), pixels)


def _simclr(pixels: Tensor, rng: BatchRNG, size: tuple[int, int], strength: float) -> Tensor:
    stretch = (4 / 3) ** strength
    pixels = _crop_and_flip(pixels, rng, size, area=(0.2**strength, 1.0), ratio=(1 / stretch, stretch))
    jittered = _jitter(pixels, rng, strength=0.8 * strength)
    pixels = torch.where(_as_mask(rng.chance(0.8)), jittered, pixels)
    pixels = torch.where(_as_mask(rng.chance(0.2)), _gray(pixels).expand_as(pixels), pixels)
    return torch.where(_as_mask(rng.chance(0.5)), _blur(pixels, rng), pixels)


AUGMENTATIONS: dict[str, Callable[[Tensor, BatchRNG, tuple[int, int], float], Tensor]] = {
    "product": _product,
    "simclr": _simclr,
    "apparel": _apparel,
    "electronics": _electronics,
    "jewelry": _jewelry,
    "none": _none,
}
_SMALLEST = {"simclr": 0.2, "apparel": 0.5, "jewelry": 0.3}  # area of a crop at full strength


def smallest_crop(name: Augmentation, strength: float) -> float:
    """The smallest share of an image's area that a preset may cut out and enlarge; 1 where it cuts out none."""
    return _SMALLEST[name] ** strength if name in _SMALLEST else 1.0


def _as_mask(choice: Tensor) -> Tensor:
    return choice[:, None, None, None]


def _crop_and_flip(
    pixels: Tensor,
    rng: BatchRNG,
    size: tuple[int, int],
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
    shift: float = 0.0,
    rotation: float = 0.0,
    flip: bool = True,
) -> Tensor:
    """Random resized crop, rotation and horizontal flip as one affine resampling.

    Args:
        area: Range of the crop's share of the image; above 1 the image is shrunk and its border drawn out.
        ratio: Range of the crop's aspect ratio relative to the image's own.
        shift: How far the crop may lie beyond the border, as a share of the image.
        rotation: Degrees that the crop may be turned either way.
        flip: Whether to mirror half of the images.
    """
    share = rng.uniform(*area).sqrt()
    stretch = rng.uniform(*ratio).sqrt()
    wide, high = share * stretch, share / stretch
    if area[1] <= 1:
        wide, high = wide.clamp(max=1), high.clamp(max=1)
    left_or_right = torch.where(rng.chance(0.5), -1.0, 1.0) if flip else torch.ones_like(wide)
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 0, 2] = wide * left_or_right, ((1 - wide).abs() + 2 * shift) * rng.uniform(-1, 1)
    theta[:, 1, 1], theta[:, 1, 2] = high, ((1 - high).abs() + 2 * shift) * rng.uniform(-1, 1)
    if rotation:
        angle, aspect = torch.deg2rad(rng.uniform(-rotation, rotation)), pixels.shape[-1] / pixels.shape[-2]
        theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * high / aspect, angle.sin() * theta[:, 0, 0] * aspect
        theta[:, 0, 0], theta[:, 1, 1] = theta[:, 0, 0] * angle.cos(), high * angle.cos()
    return _resampled(pixels, theta, size, torch.maximum(wide, high) * pixels.shape[-2] / size[0])


def _resampled(pixels: Tensor, theta: Tensor, size: tuple[int, int], step: Tensor) -> Tensor:
    """Sample images at a grid that `theta` moves; `step` ``[B]`` is how many pixels lie between two samples."""
    grid = F.affine_grid(theta, [len(pixels), 3, *size], align_corners=False)
    if size[0] * 1.5 > pixels.shape[-2]:
        return _sampled(pixels, grid)
    # Bilinear sampling looks at 2x2 pixels: an image that is shrunk is made smaller first, or it aliases; a crop that
    # is not keeps all its pixels.
    coarse = (step >= 1.25).nonzero().squeeze(1)
    smaller = F.interpolate(pixels[coarse], size, mode="bilinear", antialias=True, align_corners=False)
    if len(coarse) == len(pixels):
        return _sampled(smaller, grid)
    found = _sampled(pixels, grid)
    return found.index_copy(0, coarse, _sampled(smaller, grid[coarse]))


def _sampled(pixels: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _jitter(pixels: Tensor, rng: BatchRNG, *, strength: float) -> Tensor:
    """Brightness, contrast, saturation and hue (a rotation of the chroma plane in YIQ)."""
    reach = 0.8 * strength
    pixels = pixels * _as_mask(rng.uniform(1 - reach, 1 + reach))
    mean = _gray(pixels).mean(dim=(2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * _as_mask(rng.uniform(1 - reach, 1 + reach))
    gray = _gray(pixels)
    pixels = gray + (pixels - gray) * _as_mask(rng.uniform(1 - reach, 1 + reach))
    return _rotate_hue(pixels, rng.uniform(-0.2 * strength, 0.2 * strength) * 2 * torch.pi).clamp(0, 255)


def _rotate_hue(pixels: Tensor, angle: Tensor) -> Tensor:
    to_yiq = pixels.new_tensor([_GRAY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    rotation = torch.zeros(len(pixels), 3, 3, device=pixels.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1], rotation[:, 1, 2] = angle.cos(), -angle.sin()
    rotation[:, 2, 1], rotation[:, 2, 2] = angle.sin(), angle.cos()
    return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(to_yiq) @ rotation @ to_yiq, pixels)


def _gray(pixels: Tensor) -> Tensor:
    return (pixels * pixels.new_tensor(_GRAY)[:, None, None]).sum(dim=1, keepdim=True)


def _blur(pixels: Tensor, rng: BatchRNG) -> Tensor:
    """Gaussian blur with a kernel a tenth of the image wide and a random sigma per image."""
    batch, channels, height, width = pixels.shape
    reach = max(1, round(0.05 * min(height, width)))
    offsets = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
    sigma = rng.uniform(0.1, 2.0)[:, None]
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=1).repeat_interleave(channels, dim=0)
    flat = F.pad(pixels.reshape(1, batch * channels, height, width), (reach,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return flat.reshape(pixels.shape)
