"""How far reconstructed attributes are from the true ones, each attribute for itself and missing values left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.types import AttributeValues

__all__ = ["attribute_losses"]


def attribute_losses(logits: Sequence[Tensor], numbers: Tensor, values: AttributeValues) -> tuple[Tensor, Tensor]:
    """Add up the loss of each attribute over the rows in which it is known, without a mean.

    Sums and counts of several ranks can be added before they are divided, so that a mean over known values is that of
    the joined batch, however unevenly the missing ones are spread.

    Args:
        logits: Of each category, ``[B, classes]``: its loss is the cross entropy.
        numbers: Predicted quantities, normalized, ``[B, Q]``: their loss is smooth L1, quadratic up to one deviation
            and linear beyond (P. J. Huber, Annals of Mathematical Statistics 35, 1964), so that a price a thousand
            deviations away does not decide the step.
        values: The true ones: code 0 and NaN are missing.

    Returns:
        Sum of the losses and number of known rows of each attribute, ``[A]`` each, categories first.
    """
    targets = values.codes - 1
    sums = [F.cross_entropy(found, targets[:, i], ignore_index=-1, reduction="sum") for i, found in enumerate(logits)]
    known = ~values.numbers.isnan()
    far = F.smooth_l1_loss(numbers, values.numbers.nan_to_num().to(numbers.dtype), reduction="none")
    of_numbers = far.masked_fill(~known, 0).sum(0)
    counts = torch.cat([(targets >= 0).sum(0), known.sum(0)])
    return torch.cat([*(total.reshape(1).to(of_numbers.dtype) for total in sums), of_numbers]), counts
