"""Batch normalization folded into the convolution before it: the same function with fewer passes over memory.

At inference a batch normalization multiplies every channel and adds to it, which the convolution's own weights can do
as well (Jacob et al., 2018, arXiv:1712.05877, section 3.2).
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["fuse_batch_norms"]


def fuse_batch_norms(network: nn.Module, example: Tensor) -> int:
    """Fold in place what can be folded; the network is for inference from then on.

    One forward pass is watched: a normalization is folded where its convolution's output goes nowhere else. Other
    threads may compute meanwhile, with other networks. (`torch.fx` would patch `nn.Module` for all of them.)

    Args:
        network: In evaluation mode. One whose path depends on values, of which a single pass says nothing, stays as it
            is.
        example: What the network is given, of any values.

    Returns:
        How many batch normalizations are gone.
    """
    pairs = _pairs(network, example)
    for convolution, norm in pairs:
        conv, bn = network.get_submodule(convolution), network.get_submodule(norm)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        network.set_submodule(convolution, fuse_conv_bn_eval(conv, bn))
        network.set_submodule(norm, getattr(bn, "act", nn.Identity()))  # timm's do the activation too
    return len(pairs)


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions that nobody but a batch normalization reads, and of these."""
    watch = _Watch()
    handles = []
    for name, module in network.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(partial(watch.convolved, name)))
        elif _is_norm(module):
            handles.append(module.register_forward_pre_hook(partial(watch.normalizes, name)))
            handles.append(module.register_forward_hook(watch.normalized))
    try:
        with torch.no_grad(), watch:
            result = network(example)
    finally:
        for handle in handles:
            handle.remove()
    return [] if watch.decided else watch.pairs(result)


class _Watch(TorchDispatchMode):
    """Sees every operation of one forward pass, in this thread alone: who reads the output of which convolution?"""

    def __init__(self) -> None:
        super().__init__()
        self.decided = False  # a value was looked at, and may have chosen the path
        self._calls: Counter[str] = Counter()
        self._made: dict[int, tuple[str, Tensor]] = {}  # by identity; what is held here keeps its identity
        self._read: dict[str, list[str]] = {}  # convolution -> normalizations that were given its output
        self._elsewhere: set[str] = set()
        self._inside: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.decided = True
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self._made and self._inside is None:
                self._elsewhere.add(self._made[id(value)][0])
        return func(*args, **(kwargs or {}))

    def convolved(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """A convolution has made something."""
        self._calls[name] += 1
        self._made[id(output)] = (name, output)

    def normalizes(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A normalization begins; what it reads is its own affair."""
        self._calls[name] += 1
        self._inside = name
        if args and id(args[0]) in self._made:
            self._read.setdefault(self._made[id(args[0])][0], []).append(name)

    def normalized(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """A normalization has ended."""
        self._inside = None

    def pairs(self, result: Any) -> list[tuple[str, str]]:
        """Convolutions and normalizations that ran once, one for the other alone."""
        shown = {self._made[id(value)][0] for value in tree_leaves(result) if id(value) in self._made}
        return [
            (convolution, norms[0])
            for convolution, norms in self._read.items()
            if len(norms) == self._calls[convolution] == self._calls[norms[0]] == 1
            and convolution not in self._elsewhere | shown
        ]


def _is_norm(module: nn.Module) -> bool:
    """torch's or timm's, with statistics of its own; none of the variants that compute something else."""
    from timm.layers import BatchNormAct2d

    return type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None
