"""Settings of the text towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualtower.config import OMIT_DEFAULT
from dualtower.errors import ConfigError
from dualtower.models.towers.base import TokenPooling

__all__ = ["Activation", "DenseConfig", "TextTowerConfig"]

Activation = Literal["none", "tanh", "relu", "gelu", "sigmoid"]


@dataclass(frozen=True)
class DenseConfig:
    """One layer of what a checkpoint puts between its pooling and its embedding."""

    width: int
    """Width of its output."""
    bias: bool = True
    """Whether it adds a bias."""
    activation: Activation = "none"
    """What follows the matrix."""


@dataclass(frozen=True)
class TextTowerConfig:
    """Which text tower, and how large. A pretrained encoder, or a given `encoder`, brings its own sizes."""

    name: str = "bert"
    """Kind of tower: `bert` (any encoder of Transformers), `bow` (bag of words), `lstm` or `textcnn`."""
    pretrained: str | None = None
    """Folder or Hub id of an encoder that a `bert` tower starts from: BERT, RoBERTa, XLM-R, MiniLM, a model of
    sentence-transformers, or the text side of a CLIP or SigLIP."""
    vocab_size: int = 8000
    """Largest vocabulary trained on the catalog; a built model holds its tokenizer's true size."""
    max_length: int = 64
    """Tokens that a text is cut to."""
    width: int = 256
    """Width of embeddings and features."""
    layers: int = 3
    """Layers of `bert` and `lstm`."""
    heads: int = 4
    """Attention heads of `bert`."""
    kernels: tuple[int, ...] = (1, 2, 3, 4)
    """Kernel widths of `textcnn`, in tokens."""
    dropout: float = 0.1
    """Dropout while training."""
    pooling: Literal["auto", "mean", "cls", "max", "last", "eos", "pooler"] = "auto"
    """How tokens become one vector: their `mean` or `max`, the first (`cls`), the `last`, the end-of-text token
    (`eos`, as in CLIP), or the encoder's own `pooler`. All but mean and max need `bert`. `auto` is the rule of a
    pretrained checkpoint, which the built model records; else it is mean for `bert` and `bow`, max for the others."""
    padding: Literal["auto", "longest", "fixed"] = field(default="auto", metadata=OMIT_DEFAULT)
    """Pad texts to the longest of their batch, or all of them to `max_length` (`fixed`); `auto` is the rule of a
    pretrained checkpoint (SigLIP's is fixed), else longest."""
    projection: tuple[DenseConfig, ...] = field(default=(), metadata=OMIT_DEFAULT)
    """Layers after the pooling that a pretrained checkpoint brings along; filled in when a model is built."""
    normalize: bool = field(default=False, metadata=OMIT_DEFAULT)
    """Bring features to unit length before the head; filled in where a pretrained checkpoint does so."""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    """Whole Transformers config with its `model_type`; filled in when a model is built, for loading offline."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"text.dropout is {self.dropout}; it must be at least 0 and below 1")

    def token_pooling(self, default: TokenPooling) -> TokenPooling:
        """`pooling`, with auto resolved to the tower's own default."""
        return default if self.pooling == "auto" else self.pooling

    def refuse_encoder_settings(self) -> None:
        """Raise ConfigError where settings that only `bert` understands are given to another tower."""
        given = [name for name in ("pretrained", "encoder", "projection", "normalize") if getattr(self, name)]
        given += ["pooling"] if self.pooling not in ("auto", "mean", "max") else []
        if given:
            raise ConfigError(
                f"text tower {self.name!r} does not take text.{given[0]} = {getattr(self, given[0])!r}; "
                "type --model.text.name bert"
            )
