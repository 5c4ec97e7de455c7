"""The comparisons of `counting` for an accelerator: whole blocks at a time, in tensors.

The product is in float32 proper, never in TF32, so its errors stay within the same slack; what is too near to call is
computed exactly on the CPU, by the same code as ever. So ranks are the same to the last bit on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dualtower.evaluation.counting import Lines

__all__ = ["DEVICE_BLOCK", "count_block"]

DEVICE_BLOCK = (2048, 16384)
"""Queries x gallery items: 134 MB of scores, and some 800 MB with all that is made of them. Small cards hold it beside
a model, and it is the same on all, so that processes with different ones deal out the same blocks."""
_AT_ONCE = 1 << 22  # scores that are gathered or sorted at a time

Exact = Callable[[np.ndarray, np.ndarray], np.ndarray]


def count_block(block: Tensor, lines: Lines, exact: Exact) -> None:
    """Count the scores of a block against the thresholds of its lines.

    Args:
        block: Fast scores, float32 ``[lines, items]``, on any device.
        lines: Thresholds; the counts are added to them.
        exact: Lines and items within the block -> exact scores.
    """
    low, high = (torch.from_numpy(limits).to(block.device) for limits in (lines.low, lines.high))
    for chosen, thresholds in lines.slots(0, len(block)):
        values = block if len(chosen) == len(block) else block[_on(block, chosen)]
        where = _on(block, thresholds)
        for limits, counts in ((high, lines.above), (low, lines.possible)):
            counts[thresholds] += (values > limits[where, None]).sum(1).cpu().numpy()
    _count_crowded(block, lines, low, high)
    _settle(block, lines, low, high, exact)


def _count_crowded(block: Tensor, lines: Lines, low: Tensor, high: Tensor) -> None:
    """Lines that have many thresholds: sort some of them together, look their thresholds up."""
    step = max(1, _AT_ONCE // block.shape[1])
    for start in range(0, len(lines.crowded), step):
        some = lines.crowded[start : start + step]
        values = block[_on(block, some)].sort(dim=1).values
        for number, line in enumerate(some):
            own = slice(lines.starts[line], lines.starts[line + 1])
            for limits, counts in ((high, lines.above), (low, lines.possible)):
                below = torch.searchsorted(values[number], limits[own], right=True)
                counts[own] += block.shape[1] - below.cpu().numpy()


def _settle(block: Tensor, lines: Lines, low: Tensor, high: Tensor, exact: Exact) -> None:
    """Decide the pairs whose fast scores are too near to a threshold, by their exact scores."""
    unsettled = np.flatnonzero(lines.possible > lines.above)
    owner = lines.of_threshold[unsettled]
    step = max(1, _AT_ONCE // block.shape[1])
    for start in range(0, len(unsettled), step):
        thresholds, line = unsettled[start : start + step], owner[start : start + step]
        values, where = block[_on(block, line)], _on(block, thresholds)
        near = (values > low[where, None]) & (values <= high[where, None])
        which, items = near.nonzero().cpu().numpy().T
        found, limit = exact(line[which], items), lines.scores[thresholds][which]
        lines.above[thresholds] += np.bincount(which[found > limit], minlength=len(thresholds))
        lines.tied[thresholds] += np.bincount(which[found == limit], minlength=len(thresholds))


def _on(block: Tensor, positions: np.ndarray) -> Tensor:
    return torch.from_numpy(positions).to(block.device)
