"""Batch normalisation folded into the convolution before it: the same function with fewer passes over memory.

At inference a batch normalisation multiplies every channel and adds to it, which the convolution's own weights can do
as well (Jacob et al., 2018, arXiv:1712.05877, section 3.2).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeGuard

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold_batch_norms"]


def fold_batch_norms(network: nn.Module) -> int:
    """Fold in place what can be folded; the network is for inference from then on.

    Args:
        network: In evaluation mode. One that `torch.fx` cannot follow, because its path depends on values, stays as it
            is.

    Returns:
        How many batch normalisations are gone.
    """
    pairs = _pairs(network)
    for convolution, norm in pairs:
        conv, bn = network.get_submodule(convolution), network.get_submodule(norm)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        network.set_submodule(convolution, fuse_conv_bn_eval(conv, bn))
        network.set_submodule(norm, getattr(bn, "act", nn.Identity()))  # timm's do the activation too
    return len(pairs)


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions that nobody but a batch normalisation reads, and of these."""
    try:
        graph = _Tracer().trace(network)
    except Exception:  # networks may do anything with the proxies that a tracer sends through them
        return []
    modules = dict(network.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def once(node: Any) -> TypeGuard[fx.Node]:
        return isinstance(node, fx.Node) and node.op == "call_module" and calls[node.target] == 1

    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if once(node) and once(source) and len(source.users) == 1:
            convolution, norm = modules[str(source.target)], modules[str(node.target)]
            if type(convolution) is nn.Conv2d and _is_norm(norm):
                pairs.append((str(source.target), str(node.target)))
    return pairs


def _is_norm(module: nn.Module) -> bool:
    """torch's or timm's, with statistics of its own; none of the variants that compute something else."""
    from timm.layers import BatchNormAct2d

    return type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None


class _Tracer(fx.Tracer):
    """Looks into no batch normalisation; timm's are not torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)
