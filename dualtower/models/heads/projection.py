"""Projection heads: from a tower's features into the shared space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.errors import ConfigError, UnknownName
from dualtower.models.towers.config import DenseConfig

__all__ = ["HeadKind", "HeadNorm", "ProjectionHead", "dense_layers"]

HeadKind = Literal["linear", "mlp", "none"]
HeadNorm = Literal["none", "batch", "layer"]

_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
}


class ProjectionHead(nn.Module):
    """Map features ``[B, in]`` to embeddings ``[B, out]``.

    ``linear`` is one matrix, as in CLIP; ``mlp`` has one hidden layer as wide as its input, as in SimCLR
    (https://arxiv.org/abs/2002.05709), with GELU; ``none`` hands the features on, for a tower that
    is to be used as it is.

    Args:
        kind: ``linear``, ``mlp`` or ``none``.
        width: Width of the features.
        embed_dim: Width of the embeddings; that of the features where the kind is ``none``.
        dropout: Before the last matrix.
        norm: How the features are normalized as they come in: ``none``, ``batch`` or ``layer``. Towers end at very
            different scales; `batch` gives every feature the same say from the first step on.

    Raises:
        UnknownName: No head of that kind, or no such norm.
        ConfigError: The kind is ``none``, and the widths differ.
    """

    def __init__(
        self, kind: HeadKind, width: int, *, embed_dim: int, dropout: float = 0.0, norm: HeadNorm = "none"
    ) -> None:
        super().__init__()
        if kind not in get_args(HeadKind):
            raise UnknownName("head", kind, get_args(HeadKind))
        if norm != "none" and norm not in _NORMS:
            raise UnknownName("head norm", norm, ("none", *_NORMS))
        before = [] if norm == "none" else [_NORMS[norm](width)]
        if kind == "none":
            if width != embed_dim:
                raise ConfigError(f"without a head, embeddings are as wide as the features, {width}, not {embed_dim}")
            self.layers = nn.Sequential(*before)
            return
        hidden = [nn.Linear(width, width), nn.GELU()] if kind == "mlp" else []
        self.layers = nn.Sequential(*before, *hidden, nn.Dropout(dropout), nn.Linear(width, embed_dim, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Project ``[B, in]`` to ``[B, out]``."""
        projected: Tensor = self.layers(features)
        return projected


class _Unit(nn.Module):
    """Bring vectors to unit length, in float32 at least."""

    def forward(self, vectors: Tensor) -> Tensor:
        wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        return F.normalize(wide, dim=-1).to(vectors.dtype)


def dense_layers(width: int, layers: Sequence[DenseConfig], *, normalize: bool) -> nn.Sequential:
    """Build the layers that a checkpoint puts after its pooling: matrix n is module 2 n, its activation the next one.

    Args:
        width: Width of what is pooled.
        layers: Layers in their order; without any, the result hands on what it is given.
        normalize: Whether to bring the result to unit length.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [nn.Linear(width, layer.width, bias=layer.bias), _ACTIVATIONS[layer.activation]()]
        width = layer.width
    return nn.Sequential(*modules, *([_Unit()] if normalize else []))
