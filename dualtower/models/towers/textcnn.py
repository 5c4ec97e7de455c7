"""A convolutional network over tokens as a text tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.errors import ConfigError
from dualtower.models.towers.base import Features, Tower, pool_tokens, token_embedding
from dualtower.models.towers.config import TextTowerConfig

__all__ = ["TextCNNTower"]


class TextCNNTower(Tower):
    """Parallel convolutions of several widths, pooled by maximum over time.

    From Kim 2014, https://arxiv.org/abs/1408.5882. The sequence is padded so that every token keeps features of
    its own, for heads that look at tokens.

    Raises:
        ConfigError: Kernels that cannot be, or a setting of another tower.
    """

    compiles_for_all_lengths = False  # Inductor settles the sizes of a convolution's input

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        config.refuse_encoder_settings()
        kernels = config.kernels
        if not 1 <= len(kernels) <= config.width or min(kernels) < 1:
            raise ConfigError(f"text.kernels {kernels} must be 1 to {config.width} numbers of at least 1")
        self.width = self.token_width = config.width
        self.pooling = config.token_pooling("max")
        self.embedding = token_embedding(config.vocab_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        # An even kernel looks one token further ahead than back.
        self.margins = [((kernel - 1) // 2, kernel // 2) for kernel in kernels]
        share, rest = divmod(config.width, len(kernels))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.width, share + (number < rest), kernel) for number, kernel in enumerate(kernels)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Encode ``[B, L]`` token ids."""
        mask = attention_mask.bool()
        embedded = self.dropout(self.embedding(input_ids)).masked_fill(~mask.unsqueeze(-1), 0).transpose(1, 2)
        parts = [
            F.relu(convolution(F.pad(embedded, margin)))
            for convolution, margin in zip(self.convolutions, self.margins, strict=True)
        ]
        tokens = torch.cat(parts, dim=1).transpose(1, 2)
        return Features(self.dropout(pool_tokens(tokens, mask, self.pooling)), tokens, mask)

    def layers_above(self, name: str) -> int:
        """See `Tower.layers_above`."""
        return 1 if name.startswith("convolutions") else 2
