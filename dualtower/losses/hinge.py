"""The pairwise hinge of learning to rank: every positive against every negative."""

from __future__ import annotations

import torch
from torch import Tensor

from dualtower.losses.positives import Positives, Relations, prepare
from dualtower.losses.similarity import Similarity, similarities

__all__ = ["pairwise_hinge"]


def pairwise_hinge(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    product_codes: Tensor,
    similarity: Similarity = "cosine",
    positives: Positives = "product",
    margin: float = 0.2,
) -> Tensor:
    """Ask that every positive of a query outrank every one of its negatives, by a margin.

    With positives ``P(i) = {j : products_j = products_i}`` and negatives ``Q(i)``, all other rows::

        cost(i, p, n) = max(0, margin + s(image_i, text_n) - s(image_i, text_p))
        image_to_text = mean_i  mean_{p in P(i), n in Q(i)}  cost(i, p, n)

    Text to image likewise; the loss is the mean of the two. That is the hinge rank loss of DeViSE (Frome et
    al. 2013, equation 1) and of RankSVM (Joachims 2002), averaged per query, so that a product with many rows
    weighs no more per row. Beside `triplet` with mining ``all`` it also counts the pairs in order: convex in
    the similarities, and its gradient fades out as the batch is learned.

    Queries without a negative are left out; a batch of a single product costs zero. Scale and bias play no
    part; their gradients are exactly zero. Grows with the number of positive pairs times N in memory.

    Args:
        image: ``[N, D]``, the joined batch; half precision is computed in float32.
        text: ``[N, D]``.
        scale: Scalar.
        bias: Scalar.
        product_codes: Product codes, int64 ``[N]``.
        similarity: Which similarity `s` is.
        positives: What other rows of the same product are: ``product`` (positives), ``ignore`` (neither),
            ``pair`` (negatives).
        margin: Above zero, in units of the similarity.

    Returns:
        A scalar.
    """
    image, text = prepare(image, text, product_codes)
    relations = Relations.of(product_codes, positives)
    positive, negative = relations.positive(), relations.negative()
    alike = similarities(image, text, similarity)
    directions = _direction(alike, positive, negative, margin) + _direction(alike.T, positive, negative, margin)
    # Distributed training wants a gradient for every parameter, be it zero.
    return directions / 2 + 0 * scale + 0 * bias


def _direction(alike: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    anchor, partner = positive.nonzero(as_tuple=True)
    costs = (margin + alike[anchor] - alike[anchor, partner].unsqueeze(1)).clamp_min(0)
    per_pair = torch.where(negative[anchor], costs, 0).sum(1)
    triplets = (positive.sum(1) * negative.sum(1)).clamp_min(1)  # of each anchor
    return (per_pair / triplets[anchor]).sum() / negative.any(1).sum().clamp_min(1)
