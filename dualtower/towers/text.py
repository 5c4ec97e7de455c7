"""Settings of the text towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualtower.errors import ConfigError
from dualtower.towers.features import TokenPooling

__all__ = ["TextTowerConfig"]


@dataclass(frozen=True)
class TextTowerConfig:
    """Which text tower, and how large. A pretrained encoder, or a given `encoder`, brings its own sizes."""

    name: str = "bert"
    """`bert` (any encoder of Transformers), `bow` (bag of words), `lstm` or `textcnn`."""
    pretrained: str | None = None
    """With `bert`: folder or Hub id of an encoder to start from, such as BERT, RoBERTa, XLM-R or MiniLM."""
    vocab_size: int = 8000
    """Largest vocabulary trained on the catalogue; a built model holds its tokenizer's true size."""
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
    pooling: Literal["auto", "mean", "cls", "max"] = "auto"
    """How tokens become one vector; auto is mean for `bert` and `bow`, max for the others. `cls` needs `bert`."""
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
        given = [name for name in ("pretrained", "encoder") if getattr(self, name)]
        given += ["pooling"] if self.pooling == "cls" else []
        if given:
            raise ConfigError(
                f"text tower {self.name!r} does not take text.{given[0]} = {getattr(self, given[0])!r}; "
                "type --model.text.name bert"
            )
