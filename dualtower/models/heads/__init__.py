"""Heads that look at both sides at once: a cross-attention re-ranker and a product embedding.

They are optional parts of a `DualTower` and stand on what its towers give anyway: `Features` with tokens.
"""

from __future__ import annotations

from dualtower.models.heads.fusion import FusionConfig, ProductFusion
from dualtower.models.heads.reranker import Reranker, RerankerConfig

__all__ = ["FusionConfig", "ProductFusion", "Reranker", "RerankerConfig"]
