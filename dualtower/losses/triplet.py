"""Triplet losses in both directions, with the negatives mined in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from dualtower.errors import UnknownName
from dualtower.losses.positives import Positives, Relations, prepare
from dualtower.losses.similarity import Similarity, similarities

__all__ = ["Mining", "triplet"]

Mining = Literal["all", "semi-hard", "hardest"]


def triplet(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    product_codes: Tensor,
    similarity: Similarity = "cosine",
    positives: Positives = "product",
    margin: float = 0.2,
    mining: Mining = "semi-hard",
) -> Tensor:
    """Ask that an anchor be more like its positives than like its negatives, by a margin.

    A triplet of anchor `a`, positive `p` (any row of the other side with the anchor's product) and negative
    `n` (any row of the other side with another product) costs ``max(0, margin + s(a, n) - s(a, p))``; the
    margin is in units of the similarity. Images and texts are anchors in turn, and the loss is the mean of
    the two directions. Which triplets:

    ``all``
        Every one; the mean over those that cost anything ("batch all, non-zero", Hermans et al. 2017, "In
        Defense of the Triplet Loss", equation 6). Grows with the number of positive pairs times N in memory.
    ``semi-hard``
        For each pair of anchor and positive the hardest negative that is still less like the anchor than the
        positive is; where there is none, the easiest of all negatives. Mean over the pairs (Schroff et al.
        2015, "FaceNet", equation 4, with the usual fallback). Memory as above.
    ``hardest``
        For each anchor its least similar positive and its most similar negative; mean over the anchors
        ("batch hard", Hermans et al., equation 5; with one row per product, VSE++'s max of hinges, Faghri et
        al. 2018, equation 6). From scratch it tends to collapse: begin with another.

    With similarity ``euclidean`` the cost is that of distances, ``margin + d(a, p) - d(a, n)``. FaceNet's
    squared distance of normalized rows is ``2 - 2 cosine``: there, ``cosine`` with half its margin. Anchors
    without a negative are left out; a batch of a single product costs zero. Scale and bias play no part;
    their gradients are exactly zero.

    Args:
        image: ``[N, D]``, the joined batch; half precision is computed in float32.
        text: ``[N, D]``.
        scale: Scalar.
        bias: Scalar.
        product_codes: Product codes, int64 ``[N]``.
        similarity: Which similarity `s` is.
        positives: What other rows of the same product are: ``product`` (positives), ``ignore`` (in no
            triplet), ``pair`` (negatives).
        margin: Above zero.
        mining: Which triplets.

    Returns:
        A scalar.

    Raises:
        UnknownName: No such mining.
    """
    if mining not in get_args(Mining):
        raise UnknownName("triplet mining", mining, get_args(Mining))
    image, text = prepare(image, text, product_codes)
    relations = Relations.of(product_codes, positives)
    positive, negative = relations.positive(), relations.negative()
    alike = similarities(image, text, similarity)
    mine = _MINING[mining]
    directions = mine(alike, positive, negative, margin) + mine(alike.T, positive, negative, margin)
    # Distributed training wants a gradient for every parameter, be it zero.
    return directions / 2 + 0 * scale + 0 * bias


def _all(alike: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    anchor, partner = positive.nonzero(as_tuple=True)
    costs = margin + alike[anchor] - alike[anchor, partner].unsqueeze(1)
    active = negative[anchor] & (costs > 0)
    return torch.where(active, costs, 0).sum() / active.sum().clamp_min(1)


def _semi_hard(alike: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    anchor, partner = positive.nonzero(as_tuple=True)
    to_positive, to_others, others = alike[anchor, partner], alike[anchor], negative[anchor]
    semi_hard = others & (to_others < to_positive.unsqueeze(1))
    hardest = to_others.masked_fill(~semi_hard, -torch.inf).amax(1)
    easiest = to_others.masked_fill(~others, torch.inf).amin(1)
    costs = margin + torch.where(semi_hard.any(1), hardest, easiest) - to_positive
    return _mean(costs.clamp_min(0), others.any(1))


def _hardest(alike: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    to_positive = alike.masked_fill(~positive, torch.inf).amin(1)
    to_negative = alike.masked_fill(~negative, -torch.inf).amax(1)
    return _mean((margin + to_negative - to_positive).clamp_min(0), negative.any(1))


def _mean(costs: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, costs, 0).sum() / counted.sum().clamp_min(1)


_MINING: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "all": _all,
    "semi-hard": _semi_hard,
    "hardest": _hardest,
}
