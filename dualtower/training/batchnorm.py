"""Batch normalization over the rows of all ranks, on accelerators and on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dualtower.distributed import world_size

__all__ = ["synchronize_batchnorm"]


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Let every batch normalization inside a model see the rows of all ranks, in place.

    timm's layers that normalize and activate at once keep their activation. In evaluation mode nothing changes, nor
    do the names and the order of the weights.

    Args:
        model: Contains the layers and is none itself.
        device: Where the model will train.
    """
    convert_sync_batchnorm(model)
    if device.type == "cpu":  # where torch's own layers, and DistributedDataParallel around them, refuse to train
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.__class__ = _SyncBatchNorm  # type: ignore[assignment]


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What torch's and timm's synchronized layers become on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        shared = self.training and world_size() > 1
        output = self._normalize_jointly(input) if shared else super().forward(input)
        for name in ("drop", "act"):  # of timm's layers
            if name in self._modules:
                output = self._modules[name](output)  # type: ignore[misc]
        return output

    def _normalize_jointly(self, input: Tensor) -> Tensor:
        output: Tensor
        output, mean, var, count = _Normalize.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            rate = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            unbiased = var * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least two dimensions, got {input.dim()}")


class _Normalize(torch.autograd.Function):
    """Normalize by the joined mean and variance (https://arxiv.org/abs/1502.03167); one exchange in each direction."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var, count = _joined_statistics(values)
        ctx.save_for_backward(values, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(values, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        values, weight, mean, var, count = ctx.saved_tensors
        axes, shape = _axes(values), _shape(values)
        upstream_ = upstream.to(mean.dtype)
        inverse = (var + ctx.eps).rsqrt()
        standard = (values.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        grad_bias, grad_weight = upstream_.sum(axes), (upstream_ * standard).sum(axes)
        total = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(total)  # every rank's rows moved the mean and the variance
        mean_upstream, mean_product = (total / count).unbind()
        gradient = upstream_ - mean_upstream.view(shape) - standard * mean_product.view(shape)
        gain = inverse if weight is None else inverse * weight.to(mean.dtype)
        gradient = (gradient * gain.view(shape)).to(values.dtype)
        if weight is None:
            return gradient, None, None, None
        return gradient, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


def _joined_statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel, ``[C]``, and number of values per channel, over all ranks."""
    precise = values.to(torch.promote_types(values.dtype, torch.float32))
    var, mean = torch.var_mean(precise, _axes(values), correction=0)
    mine = torch.cat([mean, var, mean.new_tensor([values.numel() // values.shape[1]])])
    everybody = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everybody, mine)
    means, variances, counts = torch.stack(everybody).split([len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / count, count


def _axes(values: Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]


def _shape(values: Tensor) -> list[int]:
    return [1, -1, *[1] * (values.ndim - 2)]
