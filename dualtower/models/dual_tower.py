"""The dual tower: one tower for texts, one for images, two heads into one space. Either of them may be absent."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower.config import from_dict, to_dict
from dualtower.data.batches import Collator
from dualtower.errors import ConfigError, ModelFolderError
from dualtower.hub.hub import find_folder, push_folder
from dualtower.hub.model_folder import FolderParts, fingerprint_of, load_weights, read_folder, write_folder
from dualtower.losses.similarity import similarities
from dualtower.models.config import ModelConfig
from dualtower.models.encoding import Encoding
from dualtower.models.heads import (
    AttributeEncoder,
    FusionConfig,
    ImageDecoder,
    ProductFusion,
    Reranker,
    RerankerConfig,
)
from dualtower.models.precision import TowerPrecision, computed
from dualtower.models.pretrained import pretrained_image_tower
from dualtower.models.towers import (
    Features,
    ProjectionHead,
    TextTowerConfig,
    Tower,
    create_image_tower,
    create_text_tower,
)
from dualtower.models.towers.attributes import AttributeTower
from dualtower.models.towers.transformer import complete_encoder, pretrained_encoder
from dualtower.types import Batch, Embeddings

if TYPE_CHECKING:
    from dualtower.hub.model_card import ModelCard

__all__ = ["DualTower", "pretrained_attributes"]

logger = logging.getLogger(__name__)

HEADS = ("reranker", "fusion", "decoder")  # parts of config and model that stand on the towers


class DualTower(Encoding):
    """Embed texts and images into one space; or only the ones or the others, where its config has one tower.

    The constructor builds fresh weights and never downloads. `create` starts from pretrained towers,
    `from_pretrained` loads a saved dual tower.

    Args:
        config: The model. `self.config` is the same with everything that loading needs filled in.
        tokenizer: Transformers tokenizer of the text tower; `forward` does not need it, all else does. None where
            there is no text tower.

    Raises:
        UnknownTower: No tower of that name.
        ConfigError: Settings that do not fit each other.
    """

    def __init__(self, config: ModelConfig, tokenizer: Any | None = None) -> None:
        super().__init__()
        config = _complete(config)
        text = None if config.text is None else create_text_tower(config.text)
        image = None if config.image is None else create_image_tower(config.image, config.image_settings)
        if config.head == "none":
            config = replace(config, embed_dim=next(tower.width for tower in (image, text) if tower is not None))
        self.config, self.tokenizer = config, tokenizer
        self._check_vocabulary()
        self.text_tower, self.image_tower = text, image
        self.text_head, self.image_head = (_head(config, tower) for tower in (text, image))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.init_scale)))
        self.logit_bias = None if config.init_bias is None else nn.Parameter(torch.tensor(float(config.init_bias)))
        self.reranker: Reranker | None = None
        self.fusion: ProductFusion | None = None
        self.decoder: ImageDecoder | None = None
        if config.decoder is not None and image is not None:
            size = (config.image_settings.height, config.image_settings.width)
            self.decoder = ImageDecoder(config.decoder, width=image.width, size=size)
        self.attribute_encoder: AttributeEncoder | None = None
        if config.attribute_encoder is not None:
            self.attribute_encoder = AttributeEncoder(config.attribute_encoder, config.embed_dim)
        if text is not None and image is not None and config.text is not None:
            widths = [(tower.width, tower.token_width) for tower in (text, image)]
            if config.reranker is not None:
                self.reranker = Reranker(
                    config.reranker,
                    max_length=config.text.max_length,
                    image_settings=config.image_settings,
                    text_width=widths[0],
                    image_width=widths[1],
                    head_norm=config.head_norm,
                )
            if config.fusion is not None:
                self.fusion = ProductFusion(config.fusion, text=widths[0], image=widths[1], embed_dim=config.embed_dim)
        self.precision: TowerPrecision | None = None  # None: that of the autocast around it
        self._readme: tuple[str, str] | None = None  # fingerprint and model card that came with the weights

    @classmethod
    def create(cls, config: ModelConfig, tokenizer: Any | None) -> DualTower:
        """Build a model for a tokenizer, with the pretrained towers that `config` names.

        Without a text tower the tokenizer is None.

        Only here, and for the attribute tower of `with_heads`, may something be downloaded. The vocabulary size becomes
        the tokenizer's; a pretrained text tower brings its own pooling, padding and projection, a pretrained image
        tower its mean and standard deviation.

        Raises:
            UnknownTower: No tower of that name.
            ConfigError: Settings that do not fit, or pretrained weights that cannot be loaded.
        """
        text, settings = config.text, config.image_settings
        if text is not None and tokenizer is not None:
            text = replace(text, vocab_size=len(tokenizer))
        encoder: Mapping[str, Tensor] | None = None
        tower: Mapping[str, Tensor] | None = None
        if text is not None and text.name == "bert" and text.pretrained:
            encoder, text = pretrained_encoder(text, tokenizer)
        if config.image is not None and config.image.pretrained:
            tower, settings = pretrained_image_tower(config.image, settings)
        model = cls(replace(config, text=text, image_settings=settings), tokenizer)
        if encoder is not None and model.text_tower is not None:
            model.text_tower.load_state_dict(encoder)
        if tower is not None and model.image_tower is not None:
            _load_tower(model.image_tower, tower, config.image.pretrained if config.image else None)
        model._start_attributes()
        return model

    def forward(self, batch: Batch) -> Embeddings:
        """Embed a batch; either side may be absent.

        Raises:
            ConfigError: The batch has a side that this model has no tower for.
        """
        image = text = seen = read = None
        if batch.pixels is not None:
            seen = self.image_features(batch.pixels)
            assert self.image_tower is not None and self.image_head is not None
            image = self._finish(self.image_head(seen.pooled))
            if self.config.flip_tta and not self.image_tower.training:
                mirrored = self.image_features(batch.pixels.flip(-1))
                image = self._finish((image + self._finish(self.image_head(mirrored.pooled))) / 2)
        if batch.tokens is not None:
            read = self.text_features(batch.tokens)
            assert self.text_head is not None
            text = self._finish(self.text_head(read.pooled))
        scale = self.logit_scale.exp()
        bias = scale.new_zeros(()) if self.logit_bias is None else self.logit_bias
        return Embeddings(image, text, scale, bias, image_features=seen, text_features=read)

    def text_features(self, tokens: Mapping[str, Tensor], tower: Tower | None = None) -> Features:
        """What a text tower, by default the model's own, makes of ``input_ids`` and ``attention_mask`` ``[B, L]``."""
        precision = None if self.precision is None else self.precision.text
        tower = self.text_tower if tower is None else tower
        if tower is None:
            raise self.config.lacks("text", "texts")
        return computed(tower, precision, tokens["input_ids"], tokens["attention_mask"])

    def image_features(self, pixels: Tensor, tower: Tower | None = None) -> Features:
        """What an image tower, by default the model's own, makes of images ``[B, 3, H, W]``."""
        precision = None if self.precision is None else self.precision.image
        tower = self.image_tower if tower is None else tower
        if tower is None:
            raise self.config.lacks("image", "images")
        return computed(tower, precision, pixels)

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Draw images ``[B, 3, H, W]`` anew from their features: float ``[B, 3, H, W]`` in 0..255.

        Raises:
            ConfigError: The model has no decoder.
        """
        if self.decoder is None:
            raise ConfigError("this model has no decoder; recipes/pretrain_autoencoder.py trains one")
        drawn: Tensor = self.decoder(self.image_features(pixels).pooled)
        return 255 * drawn

    def compute_in(self, precision: TowerPrecision) -> None:
        """Let the towers compute in this precision and memory order from now on; it is not saved with the model."""
        self.precision = precision
        if precision.channels_last is not None and self.image_tower is not None:
            self.image_tower.order_memory(channels_last=precision.channels_last)

    def _finish(self, embeddings: Tensor) -> Tensor:
        """At least float32 (autocast computes in less), and unit length under cosine similarity."""
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return F.normalize(embeddings, dim=-1) if self.config.similarity == "cosine" else embeddings

    def similarity(self, image: Tensor | np.ndarray, text: Tensor | np.ndarray) -> Tensor:
        """Compare embeddings ``[N, D]`` with ``[M, D]`` in the model's own measure: ``[N, M]``, more is more alike."""
        return similarities(torch.as_tensor(image), torch.as_tensor(text), self.config.similarity)

    @property
    def scale(self) -> float:
        """What the similarity is multiplied with."""
        return math.exp(self.logit_scale.item())

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the scale within its limits; to be called after every optimizer step."""
        limit = math.log(self.config.max_scale)
        self.logit_scale.clamp_(-limit, limit)
        if self.reranker is not None:
            self.reranker.logit_scale.clamp_(-limit, limit)

    def layers_above(self, name: str) -> int:
        """Number of layers from a parameter to its tower's output, its own included; 0 in heads and scale."""
        part, _, rest = name.partition(".")
        return int(getattr(self, part).layers_above(rest)) if part in ("text_tower", "image_tower") else 0

    def collator(self) -> Collator:
        """The collator that makes this model's batches: the same in training, evaluation and serving."""
        text = self.config.text or TextTowerConfig()
        tower = self.attribute_tower
        return Collator(
            self.tokenizer,
            None if self.config.image is None else self.config.image_settings,
            text.max_length,
            padding="fixed" if text.padding == "fixed" else "longest",
            attributes=None if tower is None else tower.config,
            classes=self.config.fusion.tasks if self.config.fusion else {},
        )

    def fuse(self, embeddings: Embeddings, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Make one vector of each product: ``[B, D]`` of unit length, and the logits of the tasks that heads predict.

        Raises:
            ConfigError: The model has no fusion, or it reads attributes and the batch has none.
        """
        if self.fusion is None:
            raise ConfigError("this model has no fusion; recipes/train_product_fusion.py --base MODEL trains one")
        fused: tuple[Tensor, dict[str, Tensor]] = self.fusion(embeddings, batch.present, batch.attributes)
        return fused

    @property
    def attribute_tower(self) -> AttributeTower | None:
        """What reads attributes, in the fusion or in the attribute encoder; None where nothing does."""
        if self.attribute_encoder is not None:
            return self.attribute_encoder.tower
        return None if self.fusion is None else self.fusion.attributes

    def _start_attributes(self) -> None:
        """Let a fresh attribute tower start from the one that its config names."""
        tower = self.attribute_tower
        if tower is None or tower.config.pretrained is None:
            return
        anew = tower.start_from(pretrained_attributes(tower.config.pretrained))
        fresh = f"; {', '.join(anew)} begin anew" if anew else ""
        logger.info("the attribute tower starts from %s%s", tower.config.pretrained, fresh)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    @property
    def fingerprint(self) -> str:
        """Short hex over config and weights: equal models have equal ones, also after saving and loading."""
        return self._origin or fingerprint_of(to_dict(self.config), self.state_dict())

    @property
    def towers_fingerprint(self) -> str:
        """The fingerprint that this model would have without heads that stand on its towers."""
        weights = {n: w for n, w in self.state_dict().items() if n.split(".")[0] not in HEADS}
        return fingerprint_of(to_dict(replace(self.config, reranker=None, fusion=None, decoder=None)), weights)

    def with_heads(self, *, reranker: RerankerConfig | None = None, fusion: FusionConfig | None = None) -> DualTower:
        """The same towers, with their weights, under fresh heads.

        Args:
            reranker: A cross-attention head that scores single pairs.
            fusion: A head that makes one vector of a whole product.
        """
        model = DualTower(replace(self.config, reranker=reranker, fusion=fusion, decoder=None), self.tokenizer)
        own = {n: w for n, w in self.state_dict().items() if n.split(".")[0] not in HEADS}
        model.load_state_dict(model.state_dict() | own)
        model._start_attributes()
        return model

    def record_tower_fingerprint(self) -> None:
        """Note in the heads' configs which towers they were trained with; to be called when training has ended."""
        if self.config.reranker is not None:
            reranker = replace(self.config.reranker, towers=self.towers_fingerprint)
            self.config = replace(self.config, reranker=reranker)

    def _check_tower_fingerprint(self) -> None:
        trained_with = self.config.reranker.towers if self.config.reranker else ""
        if trained_with and trained_with != self.towers_fingerprint:
            raise ModelFolderError(
                f"the re-ranker was trained with towers {trained_with}, these are {self.towers_fingerprint}; "
                "train it again with recipes/train_reranker.py --base MODEL"
            )

    def save_pretrained(self, folder: str | Path, *, card: ModelCard | None = None) -> Path:
        """Write the model into a folder, all or nothing; a model that is there is replaced.

        Args:
            folder: To hold ``config.json model.safetensors tokenizer/ README.md``; without a text tower, no tokenizer.
            card: What the README says. Without it, the one that these very weights were loaded with is kept.

        Raises:
            ModelFolderError: The file system refused, or the folder holds other things. What was there is intact.
            ConfigError: The model has no tokenizer.
        """
        return write_folder(Path(folder), self._parts(card, name=str(folder)))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: ModelCard | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a dualtower model",
    ) -> str:
        """Upload the model to the Hub, creating the repository where needed. Log in with ``hf auth login``.

        Args:
            repo_id: ``user/name``.
            card: As in `save_pretrained`.
            private: For a new repository; None is the account's default.
            revision: Branch to upload to; created where needed.
            commit_message: What the Hub shows.

        Returns:
            The commit's URL.

        Raises:
            ModelFolderError: The Hub refused.
        """
        parts = self._parts(card, name=repo_id)
        return push_folder(repo_id, parts, private=private, revision=revision, commit_message=commit_message)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, local_files_only: bool = False
    ) -> DualTower:
        """Load a saved model, strictly; it comes back in evaluation mode on the CPU.

        Args:
            name: A folder, or ``user/name`` on the Hub.
            revision: Branch, tag or commit on the Hub.
            local_files_only: Take the Hub's files from the cache and ask no network.

        Raises:
            ModelFolderError: No such model, or one with a missing, extra or unfitting part, or with a re-ranker that
                was trained with other towers.
            UnknownKey: Its config holds a key that this version does not know.
        """
        path = find_folder(name, revision=revision, local_files_only=local_files_only)
        parts = read_folder(path)
        config = from_dict(ModelConfig, parts.config, where=f"{path / 'config.json'}: model")
        model = cls(config, parts.tokenizer)
        load_weights(model, parts.weights, where=path / "model.safetensors")
        model._check_tower_fingerprint()
        model._readme = (parts.fingerprint, parts.readme)
        return model.eval()

    def _check_vocabulary(self) -> None:
        text = self.config.text
        if text is None:
            if self.tokenizer is not None:
                raise ConfigError("a model without a text tower takes no tokenizer; type DualTower(config)")
            return
        size = text.encoder.get("vocab_size", text.vocab_size)
        if self.tokenizer is not None and len(self.tokenizer) > size:
            raise ConfigError(
                f"the tokenizer has {len(self.tokenizer)} tokens, the text tower knows {size}; "
                "DualTower.create(config, tokenizer) sets text.vocab_size to fit"
            )
        if text.pooling == "pooler" and getattr(self.tokenizer, "padding_side", "right") != "right":
            raise ConfigError(
                "the pooler of an encoder counts on padding on the right, and this tokenizer pads on the left; "
                "set tokenizer.padding_side = 'right', or type --model.text.pooling cls"
            )

    def _parts(self, card: ModelCard | None, *, name: str) -> FolderParts:
        from dualtower.hub.model_card import ModelCard, with_name

        if self._origin:
            raise ConfigError("a copy for inference cannot be saved; save the model that it was made from")
        if self.tokenizer is None and self.config.text is not None:
            raise ConfigError("a model without tokenizer cannot be saved; type DualTower(config, tokenizer)")
        fingerprint = self.fingerprint
        if card is None and self._readme is not None and self._readme[0] == fingerprint:
            readme = with_name(self._readme[1], name)
        else:
            readme = (card or ModelCard()).to_markdown(name=name, model=self.config, fingerprint=fingerprint)
        return FolderParts(
            config=to_dict(self.config),
            weights=self.state_dict(),
            tokenizer=self.tokenizer,
            readme=readme,
            fingerprint=fingerprint,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DualTower:
        """Keep scale and bias in float32 when the model is cast to less: bf16 would swallow their steps."""
        before = {n: p.detach().clone() for n, p in self.named_parameters(recurse=False)}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters(recurse=False):
            if parameter.dtype.itemsize < 4:
                parameter.data = before[name].to(parameter.device)
        return self


def pretrained_attributes(name: str | Path) -> AttributeTower:
    """The attribute tower of a saved model.

    Raises:
        ModelFolderError: No such model.
        ConfigError: It reads no attributes.
    """
    tower = DualTower.from_pretrained(name).attribute_tower
    if tower is None:
        raise ConfigError(
            f"attributes.pretrained is {name}, a model that reads no attributes; "
            "recipes/pretrain_attributes.py makes one that does"
        )
    return tower


def _load_tower(tower: Tower, weights: Mapping[str, Tensor], source: str | bool | None) -> None:
    try:
        tower.load_state_dict(weights)
    except RuntimeError as error:  # a ViT for images of another size
        raise ConfigError(
            f"the weights of image.pretrained = {source!r} do not fit this tower; give the images the size that it was "
            f"trained with, --model.image-settings.height and width ({error})"
        ) from error


def _complete(config: ModelConfig) -> ModelConfig:
    """Fill in whole configs of Transformers' encoders; the re-ranker's own text tower reads the model's tokens."""
    text, reranker = config.text, config.reranker
    if text is None:
        return config
    if text.name == "bert":
        text = complete_encoder(text)
    if reranker is not None and reranker.text is not None:
        own = replace(reranker.text, vocab_size=text.vocab_size, max_length=text.max_length)
        reranker = replace(reranker, text=complete_encoder(own) if own.name == "bert" else own)
    return replace(config, text=text, reranker=reranker)


def _head(config: ModelConfig, tower: Tower | None) -> ProjectionHead | None:
    """From a tower's features into the shared space."""
    if tower is None:
        return None
    return ProjectionHead(
        config.head, tower.width, embed_dim=config.embed_dim, dropout=config.head_dropout, norm=config.head_norm
    )
