"""Supervised contrastive loss over vectors of one kind, such as product embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from dualtower.errors import ConfigError

__all__ = ["supervised_contrastive"]


def supervised_contrastive(embeddings: Tensor, labels: Tensor, *, scale: Tensor | float) -> Tensor:
    """Draw rows of one label together and push the others away.

    With logits ``z_ij = scale * <e_i, e_j>`` and positives ``P(i) = {j != i : labels_j = labels_i}``::

        loss = mean over i with P(i)  of  1/|P(i)|  sum_{p in P(i)}  -log( exp z_ip / sum_{j != i} exp z_ij )

    This is the mean outside of the logarithm, "out", of Khosla et al. 2020 (https://arxiv.org/abs/2004.11362, equation
    2). The anchor itself is neither positive nor negative. An anchor whose label nobody shares adds nothing; where that
    is so for all, or there is one label only, the loss is finite and has no pull or no push.

    Args:
        embeddings: ``[N, D]`` of unit length, the joined batch; half precision is computed in float32.
        labels: int64 ``[N]``; a negative label is unknown and shared by nobody.
        scale: Multiplier of the similarity (one over the temperature).

    Returns:
        A scalar; zero, with a zero gradient, where no row has a positive.

    Raises:
        ConfigError: The shapes do not fit each other.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ConfigError(
            f"supervised_contrastive takes embeddings [N, D] and labels [N], N > 0, not {list(embeddings.shape)} "
            f"and {list(labels.shape)}"
        )
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    self_pair = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels.unsqueeze(1) == labels) & (labels >= 0) & ~self_pair
    logits = scale * (embeddings @ embeddings.T)
    if len(labels) == 1:
        return 0 * logits.sum()
    log_share = logits - logits.masked_fill(self_pair, -torch.inf).logsumexp(1, keepdim=True)
    counts = positive.sum(1)
    anchors = counts > 0
    per_row = -(log_share.masked_fill(~positive, 0).sum(1) / counts.clamp(min=1))
    return per_row[anchors].mean() if anchors.any() else 0 * logits.sum()
