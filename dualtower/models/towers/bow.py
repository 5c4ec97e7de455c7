"""A bag of words as a text tower."""

from __future__ import annotations

from torch import Tensor, nn

from dualtower.models.towers.base import Features, Tower, pool_tokens, token_embedding
from dualtower.models.towers.config import TextTowerConfig

__all__ = ["BagOfWordsTower"]


class BagOfWordsTower(Tower):
    """The mean of a text's token embeddings, normalized: the order of the words is forgotten.

    As in fastText (Joulin et al. 2016, https://arxiv.org/abs/1607.01759). Product titles are lists of words rather than
    sentences, and of a few ten thousand of them a bag generalizes better than the towers that read in order.

    Raises:
        ConfigError: A setting of another tower.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        config.refuse_encoder_settings()
        self.width = self.token_width = config.width
        self.pooling = config.token_pooling("mean")
        self.embedding = token_embedding(config.vocab_size, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Encode ``[B, L]`` token ids."""
        mask = attention_mask.bool()
        tokens = self.embedding(input_ids)
        return Features(self.dropout(self.norm(pool_tokens(tokens, mask, self.pooling))), tokens, mask)

    def layers_above(self, name: str) -> int:
        """See `Tower.layers_above`."""
        return 1
