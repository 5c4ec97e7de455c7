"""Heads that look at both sides at once, a cross-attention re-ranker and a product embedding; and one that draws.

They are optional parts of a `DualTower` and stand on what its towers give anyway: `Features` with tokens. The encoder
of attributes stands alone.
"""

from __future__ import annotations

from dualtower.models.heads.attribute_encoder import AttributeEncoder, AttributeEncoderConfig
from dualtower.models.heads.decoder import DecoderConfig, ImageDecoder
from dualtower.models.heads.fusion import FusionConfig, ProductFusion
from dualtower.models.heads.reranker import Reranker, RerankerConfig

__all__ = [
    "AttributeEncoder",
    "AttributeEncoderConfig",
    "DecoderConfig",
    "FusionConfig",
    "ImageDecoder",
    "ProductFusion",
    "Reranker",
    "RerankerConfig",
]
