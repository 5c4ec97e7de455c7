"""Heads that self-supervised training puts on an image tower, and throws away in the end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

__all__ = ["mlp_head"]


def mlp_head(widths: Sequence[int], *, norm: bool = True, last_norm: bool = False, last_bias: bool = True) -> nn.Module:
    """Build a projector or a predictor: matrices with a ReLU between them, as the papers have them.

    ::

        SimCLR    [W, W, 128], last_norm     (https://arxiv.org/abs/2002.05709, v1, with the official code's norms)
        MoCo v2   [W, W, 128], norm=False    (https://arxiv.org/abs/2003.04297)
        MoCo v3   [W, H, H, 256], last_norm  (https://arxiv.org/abs/2104.02057)
        BYOL      [W, H, 256]                (https://arxiv.org/abs/2006.07733)

    Args:
        widths: Width of the input, of each hidden layer, and of the output.
        norm: Batch normalization before every ReLU.
        last_norm: Batch normalization of the output, without scale and shift.
        last_bias: Whether the last matrix adds a bias, where no normalization would take it away again.
    """
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        modules += [nn.Linear(before, after, bias=not norm), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    modules.append(nn.Linear(widths[-2], widths[-1], bias=last_bias and not last_norm))
    if last_norm:
        modules.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*modules)
