"""Projected gradient descent: the smallest changes of pixels that raise a loss the most, within a bound.

It knows nothing of models. Whoever attacks one in evaluation, or trains one on attacked images (in contrastive
pretraining: Z. Jiang et al. 2020, https://arxiv.org/abs/2010.13337), says what the loss of pixels is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dualtower.errors import ConfigError

__all__ = ["STEP", "pgd"]

STEP = 0.25
"""Default step, as a share of epsilon. It does not depend on the number of steps: ten steps are the first ten of
twenty, so that twenty can do no worse."""


def pgd(
    pixels: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    epsilon: float,
    steps: int = 10,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Raise a loss by signed gradient steps, projected onto the L-infinity ball (A. Madry et al. 2018,
    https://arxiv.org/abs/1706.06083).

    Of all places visited, the one where a row's loss was highest is returned, so that more steps never make a weaker
    attack. Computes in float32 with autocast off, and asks for the gradient of the pixels alone: parameters get none.
    A model in the loss keeps its mode; one that trains would change its batch statistics at every step.

    Args:
        pixels: uint8 or float ``[B, 3, H, W]`` in 0..255.
        loss: From float32 ``[B, 3, H, W]`` to the loss of each row, ``[B]``; or to one number for the whole batch,
            whose best place is then that of the batch.
        epsilon: How far each value may move, in pixel values: 255 is everything.
        steps: Gradients taken. The loss is computed once more than that.
        step_size: How far a step moves each value; None is a quarter of `epsilon`.
        start: Where in the ball to start, ``[B, 3, H, W]`` in -1..1, times `epsilon`. None is at `pixels`, where a loss
            that compares them with themselves has no gradient.

    Returns:
        float32 ``[B, 3, H, W]``, within `epsilon` of `pixels` and within 0..255. A row whose loss is nowhere a number
        comes back as it was.

    Raises:
        ConfigError: A bound, step or number of steps that is not above 0, or a loss of another shape.
    """
    step_size = STEP * epsilon if step_size is None else step_size
    if not (epsilon > 0 and step_size > 0 and steps >= 1):
        raise ConfigError(
            f"an attack with epsilon {epsilon}, step size {step_size} and {steps} steps is none; give numbers above 0"
        )
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(pixels.device.type, enabled=False),
    ):
        clean = pixels.detach().float()
        low, high = (clean - epsilon).clamp_min(0), (clean + epsilon).clamp_max(255)
        place = clean if start is None else torch.clamp(clean + epsilon * start.detach().float(), low, high)
        best, highest = clean, clean.new_full((), -torch.inf)
        for step in range(steps + 1):
            last = step == steps
            place = place.detach().requires_grad_(not last)
            values = loss(place)
            if values.shape not in ((), (len(clean),)):
                raise ConfigError(
                    f"the loss of an attack on {len(clean)} images has shape {list(values.shape)}; "
                    "it must be one number per image, or one"
                )
            better = values.detach() > highest
            best = torch.where(better.view(-1, 1, 1, 1), place.detach(), best)
            highest = torch.where(better, values.detach(), highest)
            if not last:
                (gradient,) = torch.autograd.grad(values.sum(), place)
                place = torch.clamp(place.detach() + step_size * gradient.sign(), low, high)
        return best
