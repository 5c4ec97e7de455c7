"""Projection heads: from a tower's features into the shared space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from dualtower.errors import UnknownName

__all__ = ["HeadKind", "HeadNorm", "ProjectionHead"]

HeadKind = Literal["linear", "mlp"]
HeadNorm = Literal["none", "batch", "layer"]

_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class ProjectionHead(nn.Module):
    """Map features ``[B, in]`` to embeddings ``[B, out]``.

    ``linear`` is one matrix, as in CLIP; ``mlp`` has one hidden layer as wide as its input, as in SimCLR
    (https://arxiv.org/abs/2002.05709), with GELU.

    Args:
        kind: ``linear`` or ``mlp``.
        width: Of the features.
        embed_dim: Of the embeddings.
        dropout: Before the last matrix.
        norm: Of the features as they come in: ``none``, ``batch`` or ``layer``. Towers end at very different scales;
            `batch` gives every feature the same say from the first step on.

    Raises:
        UnknownName: No head of that kind, or no such norm.
    """

    def __init__(
        self, kind: HeadKind, width: int, *, embed_dim: int, dropout: float = 0.0, norm: HeadNorm = "none"
    ) -> None:
        super().__init__()
        if kind not in ("linear", "mlp"):
            raise UnknownName("head", kind, ("linear", "mlp"))
        if norm != "none" and norm not in _NORMS:
            raise UnknownName("head norm", norm, ("none", *_NORMS))
        before = [] if norm == "none" else [_NORMS[norm](width)]
        hidden = [nn.Linear(width, width), nn.GELU()] if kind == "mlp" else []
        self.layers = nn.Sequential(*before, *hidden, nn.Dropout(dropout), nn.Linear(width, embed_dim, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Project ``[B, in]`` to ``[B, out]``."""
        projected: Tensor = self.layers(features)
        return projected
