"""The sigmoid loss of SigLIP with several positives per row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.losses.positives import EVERYTHING, Positives, Relations, prepare
from dualtower.losses.similarity import Similarity, similarities
from dualtower.losses.tiles import tile_size, tiled_loss

__all__ = ["siglip"]


def siglip(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    product_codes: Tensor,
    similarity: Similarity = "cosine",
    positives: Positives = "product",
    tile: int | None = None,
) -> Tensor:
    """Decide for every pair of the batch on its own whether it shows one product.

    With logits ``z_ij = scale * s(image_i, text_j) + bias`` and labels ``y_ij = +1`` where ``products_i =
    products_j``, else ``-1``::

        loss = -1/N  sum_i sum_j  log sigmoid( y_ij * z_ij )

    That is Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (algorithm 1, normalized by the N
    rows and not by the pairs), with +1 not for the diagonal only but for all pairs of one product. The paper
    starts from scale 10 and bias -10, so that the many negatives do not drown the first steps.

    Args:
        image: ``[N, D]``, the joined batch; half precision is computed in float32.
        text: ``[N, D]``.
        scale: Scalar multiplier of the similarity.
        bias: Scalar added to the logits.
        product_codes: Product codes, int64 ``[N]``.
        similarity: Which similarity `s` is.
        positives: What other rows of the same product are: ``product`` (labeled +1), ``ignore`` (left out of
            the sum), ``pair`` (labeled -1).
        tile: Side of the tiles in which the logits are computed; 0 holds all at once; None chooses by N.

    Returns:
        A scalar.
    """
    image, text = prepare(image, text, product_codes)
    relations = Relations.of(product_codes, positives)
    if size := tile_size(tile, len(image)):
        objective = _TiledSigLIP(relations, image)
        return tiled_loss(objective, image, text=text, scale=scale, bias=bias, similarity=similarity, tile=size)
    losses = _losses(scale * similarities(image, text, similarity) + bias, relations)
    return losses.sum() / len(image)


def _losses(logits: Tensor, relations: Relations, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
    positive = relations.positive(rows, columns)
    losses = F.softplus(torch.where(positive, -logits, logits))  # -log sigmoid(y z)
    ignored = relations.ignored(rows, columns)
    return losses if ignored is None else losses.masked_fill(ignored, 0)


class _TiledSigLIP:
    """A plain sum over tiles: no pair depends on another."""

    def __init__(self, relations: Relations, like: Tensor) -> None:
        self.relations = relations
        self.sum = torch.zeros((), dtype=torch.float64, device=like.device)
        self.dtype = like.dtype

    def see(self, logits: Tensor, rows: slice, columns: slice) -> None:
        self.sum += _losses(logits, self.relations, rows, columns).sum()

    def value(self) -> Tensor:
        return (self.sum / len(self.relations.same)).to(self.dtype)

    def gradient(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        gradient = logits.sigmoid_().sub_(self.relations.positive(rows, columns).to(logits.dtype))
        gradient.div_(len(self.relations.same))
        ignored = self.relations.ignored(rows, columns)
        return gradient if ignored is None else gradient.masked_fill_(ignored, 0)
