"""The autoencoder: what an image's vector must hold for the image to be drawn again."""

from __future__ import annotations

from torch import Tensor

from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.errors import ConfigError
from dualtower.losses import reconstruction_loss
from dualtower.models.dual_tower import DualTower
from dualtower.objectives.base import Views
from dualtower.objectives.config import SelfSupervisedConfig
from dualtower.objectives.self_supervised.base import SelfSupervised
from dualtower.types import Batch

__all__ = ["Autoencoder"]


class Autoencoder(SelfSupervised):
    """Draw an image again from one vector of it (G. Hinton and R. Salakhutdinov, Science 313, 2006).

    The vector is the tower's pooled features, through the bottleneck of `model.decoder` where that has one. The decoder
    is saved with the model.

    Raises:
        ConfigError: The model has no decoder.
    """

    views = Views(images=1, texts=0)

    def __init__(self, model: DualTower, config: SelfSupervisedConfig) -> None:
        super().__init__(model, config)
        if model.decoder is None:
            raise ConfigError(
                "objective 'autoencoder' trains a decoder; give the recipe's model decoder=DecoderConfig()"
            )

    def forward(self, batch: Batch, rng: BatchRNG) -> Tensor:
        """Images drawn from their vectors, ``[B, 3, H, W]`` in 0..1."""
        assert batch.pixels is not None and self.model.decoder is not None
        drawn: Tensor = self.model.decoder(self.features(batch.pixels))
        return drawn

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Squared error and structure, a mean over this rank's images, of which all ranks have as many."""
        assert batch.pixels is not None
        return reconstruction_loss(outputs, batch.pixels / 255, structure=self.config.structure)
