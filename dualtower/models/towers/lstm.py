"""A bidirectional LSTM as a text tower."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dualtower.errors import ConfigError
from dualtower.models.towers.base import Features, Tower, pool_tokens, token_embedding
from dualtower.models.towers.config import TextTowerConfig

__all__ = ["LSTMTower"]


class LSTMTower(Tower):
    """Embeddings, then a bidirectional LSTM whose states are pooled by maximum.

    As in InferSent (Conneau et al. 2017, https://arxiv.org/abs/1705.02364). Texts are packed: the backward
    direction begins at the last real token, and padding never changes a result.

    Raises:
        ConfigError: The width is odd, or a setting of another tower is given.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        config.refuse_encoder_settings()
        if config.width % 2:
            raise ConfigError(f"text.width {config.width} is odd; the LSTM needs a half for each direction")
        self.width = self.token_width = config.width
        self.layers = config.layers
        self.pooling = config.token_pooling("max")
        self.embedding = token_embedding(config.vocab_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            config.width,
            config.width // 2,
            num_layers=config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,
            bidirectional=True,
            batch_first=True,
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Encode ``[B, L]`` token ids, padded on the right."""
        mask = attention_mask.bool()
        embedded = self.dropout(self.embedding(input_ids))
        lengths = mask.sum(1).clamp(min=1).cpu()  # the packing kernel wants them on the CPU
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = self.lstm(packed)
        tokens, _ = pad_packed_sequence(states, batch_first=True, total_length=input_ids.shape[1])
        return Features(self.dropout(pool_tokens(tokens, mask, self.pooling)), tokens, mask)

    def layers_above(self, name: str) -> int:
        """See `Tower.layers_above`."""
        match = re.search(r"_l(\d+)", name)
        return self.layers - int(match[1]) if match else self.layers + 1
