"""How far a reconstructed image is from its original: pixel by pixel, and in structure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["masked_patch_loss", "reconstruction_loss", "structural_similarity"]

WINDOW, SIGMA = 11, 1.5
_STABLE = (0.01**2, 0.03**2)  # K1 and K2 of the paper, for values in 0..1


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """The structural similarity (SSIM) of two images around each pixel.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    Transactions on Image Processing 13, 2004, equation 13, with its Gaussian window of 11 pixels and deviation 1.5.
    Windows lie within the image; images that are smaller get one as large as they are.

    Args:
        first: ``[B, C, H, W]`` in 0..1; half precision is computed in float32.
        second: ``[B, C, H, W]``.

    Returns:
        ``[B, C, H - 10, W - 10]``, 1 where both are equal.
    """
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    first, second = first.to(dtype), second.to(dtype)
    channels, height, width = first.shape[1:]
    kernels = [_gaussian(min(WINDOW, side - (side + 1) % 2), first) for side in (height, width)]

    def averaged(values: Tensor) -> Tensor:
        values = F.conv2d(values, kernels[0].view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(values, kernels[1].view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_first, mean_second = averaged(first), averaged(second)
    var_first, var_second = averaged(first**2) - mean_first**2, averaged(second**2) - mean_second**2
    covariance = averaged(first * second) - mean_first * mean_second
    luminance = (2 * mean_first * mean_second + _STABLE[0]) / (mean_first**2 + mean_second**2 + _STABLE[0])
    return luminance * (2 * covariance + _STABLE[1]) / (var_first + var_second + _STABLE[1])


def reconstruction_loss(reconstructed: Tensor, original: Tensor, *, structure: float) -> Tensor:
    """Mean squared error plus `structure` times one minus the mean structural similarity.

    Args:
        reconstructed: ``[B, C, H, W]`` in 0..1.
        original: ``[B, C, H, W]`` in 0..1.
        structure: Weight of the structure; 0 leaves it out.

    Returns:
        A scalar.
    """
    dtype = torch.promote_types(torch.promote_types(reconstructed.dtype, original.dtype), torch.float32)
    reconstructed, original = reconstructed.to(dtype), original.to(dtype)
    loss = F.mse_loss(reconstructed, original)
    return loss + structure * (1 - structural_similarity(reconstructed, original).mean()) if structure else loss


def masked_patch_loss(predicted: Tensor, original: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error of the hidden patches, each brought to mean 0 and deviation 1 (K. He et al. 2021, MAE,
    https://arxiv.org/abs/2111.06377, section 3 and table 1d).

    Args:
        predicted: ``[B, N, P]``; half precision is computed in float32.
        original: The patches themselves, ``[B, N, P]``.
        hidden: Which of them the encoder did not see, bool ``[B, N]``, at least one in all.

    Returns:
        A scalar.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    predicted, original = predicted.to(dtype), original.to(dtype)
    target = (original - original.mean(2, keepdim=True)) / (original.var(2, keepdim=True) + 1e-6).sqrt()
    errors = (predicted - target).square().mean(2)
    return (errors * hidden).sum() / hidden.sum()


def _gaussian(size: int, like: Tensor) -> Tensor:
    places = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    return weights / weights.sum()
