"""Symmetric InfoNCE (the loss of CLIP) with several positives per row."""

from __future__ import annotations

import torch
from torch import Tensor

from dualtower.losses.positives import EVERYTHING, Positives, Relations, prepare
from dualtower.losses.similarity import Similarity, similarities
from dualtower.losses.tiles import tile_size, tiled_loss

__all__ = ["info_nce"]


def info_nce(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    product_codes: Tensor,
    similarity: Similarity = "cosine",
    positives: Positives = "product",
    label_smoothing: float = 0.0,
    tile: int | None = None,
) -> Tensor:
    """Classify, among all texts of the batch, those of each image's product, and the other way round.

    With logits ``z_ij = scale * s(image_i, text_j)``, the positives ``P(i) = {j : products_j = products_i}``
    (so that ``i`` itself is one of them) and N rows::

        image_to_text = mean_i  1/|P(i)|  sum_{p in P(i)}  -log( exp z_ip / sum_j exp z_ij )
        text_to_image = mean_j  1/|P(j)|  sum_{p in P(j)}  -log( exp z_pj / sum_i exp z_ij )
        loss          = (image_to_text + text_to_image) / 2

    With one row per product that is the loss of CLIP (Radford et al. 2021, figure 3); with several it is the
    mean outside the logarithm of supervised contrastive learning (Khosla et al. 2020, equation 2, "out"),
    between two towers. As positives share the probability, its least value is ``mean_i log |P(i)|``, not
    zero. A batch of one single product has no negatives; its loss is finite and only evens out the logits.

    Label smoothing mixes the targets ``1/|P(i)|`` with an equal share for every column that is not ignored,
    as PyTorch's cross entropy does. The bias would cancel out: it is left out, and its gradient is exactly
    zero.

    Args:
        image: ``[N, D]``, the joined batch; half precision is computed in float32.
        text: ``[N, D]``.
        scale: Scalar multiplier of the similarity.
        bias: Scalar.
        product_codes: Product codes, int64 ``[N]``.
        similarity: Which similarity `s` is.
        positives: What other rows of the same product are: ``product`` (positives), ``ignore`` (left out of
            the sums), ``pair`` (negatives, as in CLIP).
        label_smoothing: Share of the targets that is spread evenly, 0 to 1.
        tile: Side of the tiles in which the logits are computed, which keeps memory from growing with N
            squared; 0 holds all logits at once; None chooses by N.

    Returns:
        A scalar.
    """
    image, text = prepare(image, text, product_codes)
    targets = _Targets(Relations.of(product_codes, positives), label_smoothing, image.dtype)
    untouched = 0 * bias  # distributed training wants a gradient for every parameter, be it zero
    if size := tile_size(tile, len(image)):
        objective = _TiledInfoNCE(targets, len(image), image)
        loss = tiled_loss(objective, image, text=text, scale=scale, bias=None, similarity=similarity, tile=size)
        return loss + untouched
    logits = scale * similarities(image, text, similarity)
    attraction = (targets.block() * logits).sum()
    logits = targets.drop_ignored(logits)
    repulsion = (logits.logsumexp(0) + logits.logsumexp(1)).sum() / 2
    return (repulsion - attraction) / len(image) + untouched


class _Targets:
    """What the two softmaxes of a pair should add up to, as half their sum, block by block."""

    def __init__(self, relations: Relations, smoothing: float, dtype: torch.dtype) -> None:
        positives, candidates = (count.to(dtype) for count in relations.counts())
        self.relations = relations
        self.share = (1 - smoothing) / positives  # equal for all rows of a product, so symmetric
        self.floor = smoothing / candidates if smoothing else None

    def block(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
        targets = self.relations.positive(rows, columns) * self.share[rows].unsqueeze(1)
        if self.floor is not None:
            floor = (self.floor[rows].unsqueeze(1) + self.floor[columns]) / 2
            ignored = self.relations.ignored(rows, columns)
            targets += floor if ignored is None else floor.masked_fill(ignored, 0)
        return targets

    def drop_ignored(self, logits: Tensor, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
        ignored = self.relations.ignored(rows, columns)
        return logits if ignored is None else logits.masked_fill(ignored, -torch.inf)


class _TiledInfoNCE:
    """Running log-sum-exp of every row and of every column."""

    def __init__(self, targets: _Targets, length: int, like: Tensor) -> None:
        self.targets = targets
        self.rows = like.new_full((length,), -torch.inf)
        self.columns = self.rows.clone()
        self.attraction = torch.zeros((), dtype=torch.float64, device=like.device)

    def see(self, logits: Tensor, rows: slice, columns: slice) -> None:
        targets = self.targets.block(rows, columns)
        self.attraction += torch.dot(targets.flatten(), logits.flatten())
        logits = self.targets.drop_ignored(logits, rows, columns)
        self.rows[rows] = torch.logaddexp(self.rows[rows], logits.logsumexp(1))
        self.columns[columns] = torch.logaddexp(self.columns[columns], logits.logsumexp(0))

    def value(self) -> Tensor:
        repulsion = (self.rows + self.columns).sum(dtype=torch.float64) / 2
        return ((repulsion - self.attraction) / len(self.rows)).to(self.rows.dtype)

    def gradient(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        targets = self.targets.block(rows, columns)
        logits = self.targets.drop_ignored(logits, rows, columns)
        by_row = (logits - self.rows[rows].unsqueeze(1)).exp_()
        by_column = logits.sub_(self.columns[columns]).exp_()
        return by_row.add_(by_column).sub_(targets, alpha=2).div_(2 * len(self.rows))
