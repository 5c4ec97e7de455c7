"""Contrastive losses within one set of vectors: by label (SupCon), or between two views of every row (NT-Xent)."""

from __future__ import annotations

import torch
from torch import Tensor

from dualtower.errors import ConfigError
from dualtower.losses.positives import EVERYTHING
from dualtower.losses.similarity import similarities
from dualtower.losses.tiles import tile_size, tiled_loss

__all__ = ["nt_xent", "supervised_contrastive"]


def supervised_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    *,
    scale: Tensor | float,
    kin: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """Draw rows of one label together and push the others away.

    With logits ``z_ij = scale * <e_i, e_j>``, positives ``P(i) = {j != i : labels_j = labels_i}`` and the candidates
    ``C(i) = {j != i}`` without those that are kin of i but no positive::

        loss = mean over i with P(i)  of  1/|P(i)|  sum_{p in P(i)}  -log( exp z_ip / sum_{j in C(i)} exp z_ij )

    This is the mean outside of the logarithm, "out", of Khosla et al. 2020 (https://arxiv.org/abs/2004.11362, equation
    2). The anchor itself is neither positive nor negative. An anchor whose label nobody shares adds nothing; where that
    is so for all, or there is one label only, the loss is finite and has no pull or no push.

    Args:
        embeddings: ``[N, D]`` of unit length, the joined batch; half precision is computed in float32.
        labels: int64 ``[N]``; a negative label is unknown and shared by nobody.
        scale: Multiplier of the similarity (one over the temperature).
        kin: int64 ``[N]``; rows with equal numbers are never negatives of each other, whatever their labels. None: no
            two rows are kin.
        tile: Side of the tiles in which the logits are computed, which keeps memory from growing with N squared; 0
            holds all logits at once; None chooses by N.

    Returns:
        A scalar; zero, with a zero gradient, where no row has a positive.

    Raises:
        ConfigError: The shapes do not fit each other.
    """
    shapes = {labels.shape, labels.shape if kin is None else kin.shape}
    if embeddings.ndim != 2 or shapes != {embeddings.shape[:1]} or not len(labels):
        raise ConfigError(
            f"supervised_contrastive takes embeddings [N, D], labels [N] and perhaps kin [N], N > 0, not "
            f"{list(embeddings.shape)} and {list(labels.shape)}" + ("" if kin is None else f", kin {list(kin.shape)}")
        )
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    scale = torch.as_tensor(scale, dtype=embeddings.dtype, device=embeddings.device)
    groups = _Groups(labels, kin)
    anchors = int(groups.is_anchor.sum())
    if anchors == 0:
        return 0 * (scale * embeddings).sum()
    if size := tile_size(tile, len(labels)):
        objective = _TiledSupervised(groups, anchors, embeddings)
        return tiled_loss(
            objective, embeddings, text=embeddings, scale=scale, bias=None, similarity="cosine", tile=size
        )
    logits = scale * similarities(embeddings, embeddings)
    attraction = (groups.targets(logits.dtype) * logits).sum()
    candidates = groups.drop_ignored(logits)
    if anchors < len(labels):  # a row that is no anchor may have no candidate either, whose gradient would be NaN
        candidates = candidates[groups.is_anchor]
    return (candidates.logsumexp(1).sum() - attraction) / anchors


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    scale: Tensor | float,
    product_codes: Tensor,
    labels: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """Find the other view of a row among all views of all other rows: the normalized, temperature-scaled cross entropy.

    The loss of SimCLR (T. Chen et al. 2020, https://arxiv.org/abs/2002.05709, equation 1 and algorithm 1): each of the
    2N views is an anchor, its positive is the other view of its row, and the 2N - 2 views of the other rows are its
    negatives, those of its own half among them. (The N x N cross entropy between two halves, which has 2N - 2 negatives
    for no anchor, is another loss: `info_nce`.) Views of other rows of the same product are left out of the sums.

    Args:
        first: One view of each row of the joined batch, ``[N, D]`` of unit length.
        second: Another view of each row, ``[N, D]``.
        scale: One over the temperature.
        product_codes: Product codes, int64 ``[N]``; rows of one product are never negatives of each other.
        labels: int64 ``[N]``; rows of one label are positives of each other. None: the views of a row alone are.
        tile: As in `supervised_contrastive`.

    Returns:
        A scalar. A single row has no negatives, and a loss of zero.
    """
    rows = torch.arange(len(first), device=first.device)
    same = rows if labels is None else torch.where(labels < 0, labels.amax().clamp(min=0) + 1 + rows, labels)
    both = torch.cat([first, second])
    return supervised_contrastive(
        both, torch.cat([same, same]), scale=scale, kin=torch.cat([product_codes, product_codes]), tile=tile
    )


class _Groups:
    """Which rows are positives of each other and which are left out, block by block."""

    def __init__(self, labels: Tensor, kin: Tensor | None) -> None:
        places = torch.arange(len(labels), device=labels.device)
        self.same = torch.where(labels < 0, -1 - places, labels)
        self.kin, self.places = kin, places
        numbers = torch.unique(self.same, return_inverse=True)[1]
        self.positives = torch.bincount(numbers)[numbers] - 1
        self.is_anchor = self.positives > 0

    def targets(self, dtype: torch.dtype, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
        """The share of each column among the positives of each row, ``[R, C]``."""
        share = (1 / self.positives.clamp(min=1)).to(dtype)[rows].unsqueeze(1)
        return self._positive(rows, columns) * share

    def drop_ignored(self, logits: Tensor, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
        """The logits, with -inf for the anchor itself and for its kin."""
        ignored = self._itself(rows, columns)
        if self.kin is not None:
            ignored |= (self.kin[rows].unsqueeze(1) == self.kin[columns]) & ~self._positive(rows, columns)
        return logits.masked_fill(ignored, -torch.inf)

    def _positive(self, rows: slice, columns: slice) -> Tensor:
        return (self.same[rows].unsqueeze(1) == self.same[columns]) & ~self._itself(rows, columns)

    def _itself(self, rows: slice, columns: slice) -> Tensor:
        return self.places[rows].unsqueeze(1) == self.places[columns]


class _TiledSupervised:
    """Running log-sum-exp of every row."""

    def __init__(self, groups: _Groups, anchors: int, like: Tensor) -> None:
        self.groups, self.count = groups, anchors
        self.rows = like.new_full((len(like),), -torch.inf)
        self.attraction = torch.zeros((), dtype=torch.float64, device=like.device)

    def see(self, logits: Tensor, rows: slice, columns: slice) -> None:
        targets = self.groups.targets(logits.dtype, rows, columns)
        self.attraction += torch.dot(targets.flatten(), logits.flatten())
        logits = self.groups.drop_ignored(logits, rows, columns)
        self.rows[rows] = torch.logaddexp(self.rows[rows], logits.logsumexp(1))

    def value(self) -> Tensor:
        repulsion = self.rows[self.groups.is_anchor].sum(dtype=torch.float64)
        return ((repulsion - self.attraction) / self.count).to(self.rows.dtype)

    def gradient(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        targets = self.groups.targets(logits.dtype, rows, columns)
        logits = self.groups.drop_ignored(logits, rows, columns)
        pushed = (logits - self.rows[rows].unsqueeze(1)).exp_()
        pushed[~self.groups.is_anchor[rows]] = 0
        return pushed.sub_(targets).div_(self.count)
