"""How alike two embeddings are, as one matrix, and the gradient of one tile of it.

Every kind grows with likeness, so that losses and rankings never ask which one they hold.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dualtower.errors import UnknownName

__all__ = ["Similarity", "accumulate_gradients_", "similarities"]

Similarity = Literal["cosine", "dot", "euclidean"]


def similarities(image: Tensor, text: Tensor, kind: Similarity = "cosine") -> Tensor:
    """Compare every row of `image` with every row of `text`.

    ``cosine`` expects rows that are L2-normalized already (the model does it) and is then the dot product, as
    is ``dot`` for rows of any length. ``euclidean`` is the negative distance ``-||a - b||``; where two rows
    are equal its gradient, which does not exist there, is taken as zero.

    Args:
        image: ``[N, D]``.
        text: ``[M, D]``.
        kind: Which similarity.

    Returns:
        ``[N, M]``; never computed in a lower precision than the inputs, under autocast neither.

    Raises:
        UnknownName: No such kind.
    """
    if kind not in get_args(Similarity):
        raise UnknownName("similarity", kind, get_args(Similarity))
    with torch.autocast(image.device.type, enabled=False):
        dots = image @ text.T
        if kind != "euclidean":
            return dots
        squared = image.square().sum(1, keepdim=True) + text.square().sum(1) - 2 * dots
        apart = squared > 0  # rounding can bring equal rows below zero
        return -torch.where(apart, squared, 1).sqrt() * apart


def accumulate_gradients_(
    grad_image: Tensor | None,
    grad_text: Tensor | None,
    upstream: Tensor,
    tile: Tensor,
    image: Tensor,
    text: Tensor,
    kind: Similarity,
) -> None:
    """Add one tile's gradient to those of its rows and columns, in place.

    Args:
        grad_image: ``[R, D]`` to add to, or None where no gradient is wanted.
        grad_text: ``[C, D]``, likewise.
        upstream: Gradient of the loss with respect to the tile, ``[R, C]``.
        tile: ``similarities(image, text, kind)``, ``[R, C]``.
        image: ``[R, D]``.
        text: ``[C, D]``.
        kind: Which similarity.
    """
    with torch.autocast(image.device.type, enabled=False):
        if kind == "euclidean":  # d/da of -||a - b|| is (b - a) / ||a - b||
            upstream = torch.where(tile < 0, upstream / -tile, 0)
        if grad_image is not None:
            grad_image.addmm_(upstream, text)
        if grad_text is not None:
            grad_text.addmm_(upstream.T, image)
        if kind == "euclidean":
            if grad_image is not None:
                grad_image.addcmul_(upstream.sum(1, keepdim=True), image, value=-1)
            if grad_text is not None:
                grad_text.addcmul_(upstream.sum(0).unsqueeze(1), text, value=-1)
