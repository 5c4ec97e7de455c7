"""What must hold of gradients before the weights move, and of weights before they are saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

__all__ = ["SMALLEST_LOSS_SCALE", "clip_gradients", "nan_unless_finite", "non_finite_weights"]

SMALLEST_LOSS_SCALE = 2.0**-10
"""Below that, gradients overflow in fp16 whatever they are scaled by: 27 skipped steps in a row from 65536 on."""


def nan_unless_finite(loss: Tensor) -> Tensor:
    """Return the loss itself; where it is not finite, every gradient of it becomes NaN.

    The averaging over ranks carries that to all of them, so that a broken loss on one rank shows in everybody's
    gradient norm, and nobody has to ask the others.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def clip_gradients(accelerator: Accelerator, module: nn.Module, limit: float | None) -> Tensor:
    """Scale the gradients down to a joint norm of `limit`, where one is given.

    Returns:
        Their norm before that, a scalar on their device. What takes no part in the step has no gradient and counts
        for nothing.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    if limit is None:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm: Tensor = accelerator.clip_grad_norm_(parameters, limit)
    return norm


def non_finite_weights(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights and statistics that hold NaN or infinity."""
    return [name for name, weight in state.items() if weight.is_floating_point() and not bool(weight.isfinite().all())]
