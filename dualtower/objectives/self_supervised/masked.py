"""The masked autoencoder: a ViT sees a quarter of the patches, and a small decoder draws the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import rank
from dualtower.errors import ConfigError
from dualtower.losses import masked_patch_loss
from dualtower.models.dual_tower import DualTower
from dualtower.models.towers.image import TimmTower
from dualtower.objectives.base import Views
from dualtower.objectives.config import SelfSupervisedConfig
from dualtower.objectives.self_supervised.base import SelfSupervised
from dualtower.types import Batch

__all__ = ["MaskedAutoencoder"]

_HEAD_WIDTH = 32


class Patches(NamedTuple):
    """What was drawn of the patches, what they are, and which of them were hidden.

    Attributes:
        drawn: ``[B, N, P]``.
        original: ``[B, N, P]``.
        hidden: bool ``[B, N]``; as many of each image.
    """

    drawn: Tensor
    original: Tensor
    hidden: Tensor


class MaskedAutoencoder(SelfSupervised):
    """Draw the patches that the encoder did not see (K. He et al. 2021, https://arxiv.org/abs/2111.06377).

    The encoder computes the visible patches only; the decoder puts a learned token in the place of the others.

    Raises:
        ConfigError: The image tower is no ViT with learned positions.
    """

    views = Views(images=1, texts=0)

    def __init__(self, model: DualTower, config: SelfSupervisedConfig) -> None:
        super().__init__(model, config)
        tower = model.image_tower
        assert isinstance(tower, TimmTower) and model.config.image is not None
        backbone: Any = tower.backbone
        if not all(hasattr(backbone, part) for part in ("patch_embed", "blocks", "_pos_embed", "norm_pre")):
            raise ConfigError(
                f"objective 'masked' hides patches of a ViT, and image tower {model.config.image.name!r} is none; type "
                "--model.image.name vit_tiny_patch16_224, or another of timm's vit_ models"
            )
        self.patch = (height, width) = tuple(backbone.patch_embed.patch_size)
        self.grid = (tower.size[0] // height, tower.size[1] // width)
        inner, count = config.decoder_width, self.grid[0] * self.grid[1]
        self.visible = max(1, round(count * (1 - config.masked)))
        if self.visible >= count:
            raise ConfigError(
                f"images of {tower.size[0]}x{tower.size[1]} pixels have {count} patches of {height}x{width}, of which "
                f"ssl.masked {config.masked} hides none; take larger images or smaller patches"
            )
        self.widen = nn.Linear(backbone.embed_dim, inner)
        self.token = nn.Parameter(0.02 * torch.randn(inner))
        self.positions = nn.Parameter(0.02 * torch.randn(count, inner))
        heads = max(1, inner // _HEAD_WIDTH)
        layer = nn.TransformerEncoderLayer(
            inner, heads, 4 * inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.decoder_layers, enable_nested_tensor=False)
        self.draw = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, 3 * height * width))

    def forward(self, batch: Batch, rng: BatchRNG) -> Patches:
        """Encode the visible patches and draw them all."""
        assert batch.pixels is not None and isinstance(self.model.image_tower, TimmTower)
        images = self.model.image_tower.normalized(batch.pixels)
        count = self.grid[0] * self.grid[1]
        order = self._order(batch, rng, count)
        kept, back = order[:, : self.visible], order.argsort(1)
        seen = self._encoded(images, kept)
        tokens = self.token.to(seen.dtype).expand(len(seen), count - self.visible, -1)
        whole = torch.cat([self.widen(seen), tokens], dim=1)
        whole = whole.gather(1, back.unsqueeze(2).expand(-1, -1, whole.shape[2])) + self.positions
        hidden = back >= self.visible
        return Patches(self.draw(self.layers(whole)), self._patches(images), hidden)

    def loss(self, outputs: Patches, batch: Batch) -> Tensor:
        """The error of the hidden patches: a mean over this rank's images, of which all ranks hide as much."""
        return masked_patch_loss(*outputs)

    def _order(self, batch: Batch, rng: BatchRNG, count: int) -> Tensor:
        """The patches of each of this rank's images in a random order, the visible ones first: int64 ``[B, N]``."""
        noise = rng.gumbel(count)  # of the joined batch, the same on all ranks
        start = rank() * len(batch.ids)
        return noise[start : start + len(batch.ids)].argsort(1)

    def _encoded(self, images: Tensor, kept: Tensor) -> Tensor:
        """What the encoder makes of some patches of each image, ``[B, V, W]``."""
        assert self.model.image_tower is not None
        backbone: Any = self.model.image_tower.get_submodule("backbone")
        tokens = backbone._pos_embed(backbone.patch_embed(images))
        first = getattr(backbone, "num_prefix_tokens", 0)
        patches = tokens[:, first:].gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        tokens = backbone.norm_pre(torch.cat([tokens[:, :first], patches], dim=1))
        encoded: Tensor = backbone.fc_norm(backbone.norm(backbone.blocks(tokens)))  # one of them does nothing
        return encoded[:, first:]

    def _patches(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` as their patches, line by line: ``[B, N, 3 * h * w]``."""
        (rows, columns), (height, width) = self.grid, self.patch
        blocks = images.reshape(len(images), 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return blocks.reshape(len(images), rows * columns, -1)
