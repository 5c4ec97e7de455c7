"""What a dual tower is made of; saved beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from dualtower.config import OMIT_DEFAULT
from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import ConfigError
from dualtower.losses.similarity import Similarity
from dualtower.models.heads import AttributeEncoderConfig, DecoderConfig, FusionConfig, RerankerConfig
from dualtower.models.heads.projection import HeadKind, HeadNorm
from dualtower.models.towers import ImageTowerConfig, TextTowerConfig

__all__ = ["Modality", "ModelConfig"]

Modality = Literal["image", "text"]
_ONLY = {
    "image": "it embeds images alone: use encode_image, or search with --image or --similar",
    "text": "it embeds texts alone: use encode_text, or search with --text or --similar",
}
_ATTRIBUTES_ALONE = (
    "it encodes attributes alone: use encode_attributes, or start a fusion from it with "
    "--model.fusion.attributes.pretrained FOLDER"
)


@dataclass(frozen=True)
class ModelConfig:
    """A complete dual tower, or one tower of it. It is saved with the weights."""

    text: TextTowerConfig | None = field(default_factory=TextTowerConfig)
    """The text tower; None for a model of images alone."""
    image: ImageTowerConfig | None = field(default_factory=ImageTowerConfig)
    """The image tower; None for a model of texts alone."""
    image_settings: ImageSettings = field(default_factory=ImageSettings)
    embed_dim: int = 256
    """Width of the shared space."""
    head: HeadKind = "linear"
    """Head from each tower's features to the shared space: `linear`, `mlp`, or `none`, whose embeddings are the
    features themselves, and `embed_dim` their width."""
    head_dropout: float = 0.0
    """Dropout inside the heads while training."""
    head_norm: HeadNorm = "none"
    """Normalization of each tower's features before its head: `batch` or `layer`."""
    similarity: Similarity = "cosine"
    """Score of two embeddings: `cosine`, `dot` product, or `euclidean` (the negative distance)."""
    flip_tta: bool = False
    """Once trained, embed an image as the mean of its own and its mirror image's embedding: better, at twice the
    time."""
    init_scale: float = 1 / 0.07
    """What the similarity is multiplied with at the start; learned. The default is CLIP's."""
    max_scale: float = 100.0
    """The scale is clamped to 1/max_scale ... max_scale after every step."""
    init_bias: float | None = None
    """What is added to the logits at the start (SigLIP: -10); learned. None is no bias."""
    reranker: RerankerConfig | None = None
    """A cross-attention head that scores single pairs; None is none."""
    fusion: FusionConfig | None = None
    """A head that makes one vector of a product's title, image and attributes; None is none."""
    decoder: DecoderConfig | None = field(default=None, metadata=OMIT_DEFAULT)
    """A head that reconstructs images from the features of the image tower; None is none."""
    attribute_encoder: AttributeEncoderConfig | None = field(default=None, metadata=OMIT_DEFAULT)
    """An encoder of attributes into codes of `embed_dim`, which stands alone: in a model without towers; None is
    none."""

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise ConfigError(f"embed_dim is {self.embed_dim}; it must be at least 1")
        if not (self.max_scale >= 1 and 1 / self.max_scale <= self.init_scale <= self.max_scale):
            raise ConfigError(
                f"init_scale {self.init_scale} is not between 1/max_scale and max_scale = {self.max_scale}"
            )
        if not self.modalities and self.attribute_encoder is None:
            raise ConfigError("a model needs a text tower, an image tower, or both; text and image are both None")
        if self.modalities and self.attribute_encoder is not None:
            raise ConfigError(
                f"an attribute encoder stands alone, and this model has a tower for {self.modalities[0]}s; set text "
                "and image to None, or read attributes beside the towers with model.fusion.attributes"
            )
        if self.decoder is not None and self.image is None:
            raise ConfigError("a decoder draws from the features of an image tower, and this model has none")
        heads = [name for name in ("reranker", "fusion") if getattr(self, name) is not None]
        if heads and len(self.modalities) < 2:
            has = f"a tower for {self.modalities[0]}s alone" if self.modalities else "no tower"
            raise ConfigError(
                f"a {heads[0]} looks at texts and images, and this model has {has}; "
                f"leave out model.{heads[0]}, or give the model both towers"
            )

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the model embeds: ``image``, ``text`` or both, in this order; of attributes alone, none of them."""
        return tuple(name for name in get_args(Modality) if getattr(self, name) is not None)

    def require(self, modality: Modality, wanted: str) -> None:
        """Refuse what this model has no tower for.

        Args:
            modality: Which tower it takes.
            wanted: What was asked for, to begin the message with.

        Raises:
            ConfigError: The model has no such tower; says what it has.
        """
        if modality not in self.modalities:
            raise self.lacks(modality, wanted)

    def lacks(self, modality: Modality, wanted: str) -> ConfigError:
        """The error of `require`."""
        has = _ONLY[self.modalities[0]] if self.modalities else _ATTRIBUTES_ALONE
        return ConfigError(f"{wanted}: this model has no {modality} tower; {has}")

    def require_tower(self, wanted: str) -> None:
        """Refuse a model without towers, for what is done with either of them.

        Raises:
            ConfigError: The model encodes attributes alone.
        """
        if not self.modalities:
            raise ConfigError(f"{wanted}: this model has no text and no image tower; {_ATTRIBUTES_ALONE}")
