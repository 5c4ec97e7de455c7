"""The loss without negatives: how far a prediction points away from its target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["negative_cosine"]


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """The negative cosine of the angle between each prediction and its target, averaged over the rows.

    It is -1 where they agree. Up to the factor 2 and a constant it is the loss of BYOL (Grill et al. 2020,
    https://arxiv.org/abs/2006.07733, equation 2), the squared distance of the two at unit length.

    Args:
        predicted: ``[N, D]`` of any length; half precision is computed in float32.
        target: ``[N, D]``, which gets no gradient.

    Returns:
        A scalar from -1 to 1.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    predicted, target = F.normalize(predicted.to(dtype), dim=1), F.normalize(target.detach().to(dtype), dim=1)
    return -(predicted * target).sum(1).mean()
