"""Any encoder of Hugging Face Transformers as a text tower."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dualtower.errors import ConfigError
from dualtower.towers.features import Features, Tower, pool_tokens
from dualtower.towers.text import TextTowerConfig

__all__ = ["TransformerTower", "complete_encoder", "pretrained_encoder"]

# Parts of a Transformers config that say where it came from, not what is built.
_PROVENANCE = ("transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")


class TransformerTower(Tower):
    """A Transformers encoder (https://arxiv.org/abs/1810.04805), pooled from its last hidden state.

    Args:
        config: With `encoder` filled in, see `complete_encoder`. The weights are fresh; nothing is downloaded.

    Raises:
        ConfigError: Transformers cannot build a text encoder from `config.encoder`.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        from transformers import AutoModel

        encoder_config = _encoder_config(config)
        self.encoder = _without_pooler(AutoModel.from_config(encoder_config, trust_remote_code=False))
        self.width = self.token_width = encoder_config.hidden_size
        self.pooling = config.token_pooling("mean")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Encode ``[B, L]`` token ids."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.bool()
        return Features(pool_tokens(tokens, mask, self.pooling), tokens, mask)

    def layers_above(self, name: str) -> int:
        """See `Tower.layers_above`."""
        numbers = [int(match[1]) for n, _ in self.named_parameters() if (match := _LAYER.search(n))]
        layers = max(numbers, default=-1) + 1
        if match := _LAYER.search(name):
            return layers - int(match[1])
        return layers + 1 if "embeddings" in name else 1


def complete_encoder(config: TextTowerConfig) -> TextTowerConfig:
    """Fill in `encoder` from the other settings: a BERT of that width and depth.

    Raises:
        ConfigError: `pretrained` is given without its encoder's config, or the heads do not divide the width.
    """
    if config.encoder:
        return config
    if config.pretrained is not None:
        raise ConfigError(
            f"text.pretrained = {config.pretrained!r} is fetched by DualTower.create(config, tokenizer); "
            "DualTower(config) itself never downloads"
        )
    if config.width % config.heads:
        raise ConfigError(f"text.width {config.width} cannot be divided among {config.heads} text.heads")
    from transformers import BertConfig

    bert = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=config.max_length,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
    )
    return replace(config, encoder=_plain(bert))


def pretrained_encoder(config: TextTowerConfig) -> tuple[nn.Module, TextTowerConfig]:
    """Load the encoder that `config.pretrained` names, from a folder or the Hub.

    Returns:
        The Transformers model without its pooler, and `config` with `encoder` filled in.

    Raises:
        ConfigError: It cannot be found or loaded, or is no text encoder.
    """
    from transformers import AutoModel

    try:
        encoder = AutoModel.from_pretrained(config.pretrained, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"no Transformers encoder in text.pretrained = {config.pretrained!r}; "
            f"give a folder or a Hub id such as 'google-bert/bert-base-uncased' ({error})"
        ) from error
    config = replace(config, encoder=_plain(encoder.config))
    _encoder_config(config)
    return _without_pooler(encoder).float(), config


def _plain(encoder_config: Any) -> dict[str, Any]:
    everything = encoder_config.to_dict()
    return {k: v for k, v in everything.items() if k not in _PROVENANCE and not k.startswith("_")}


def _encoder_config(config: TextTowerConfig) -> Any:
    """The Transformers config object, checked."""
    from transformers import AutoConfig

    values = dict(config.encoder)
    kind = values.pop("model_type", None)
    try:
        built = AutoConfig.for_model(kind, **values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"Transformers cannot build text.encoder of model_type {kind!r}: {error}") from error
    if built.is_encoder_decoder or not isinstance(getattr(built, "hidden_size", None), int):
        raise ConfigError(f"{kind!r} is no text encoder; take one such as BERT, RoBERTa, XLM-R or DistilBERT")
    positions = _positions(built)
    if positions is not None and config.max_length > positions:
        raise ConfigError(
            f"text.max_length {config.max_length} is more than the {positions} positions of this {kind!r} encoder"
        )
    return built


def _positions(encoder_config: Any) -> int | None:
    """Tokens that the position embeddings reach; RoBERTa and its kin begin to count after the padding id."""
    positions = getattr(encoder_config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if encoder_config.model_type in _ROBERTA_LIKE:
        return positions - encoder_config.pad_token_id - 1
    return positions


def _without_pooler(encoder: Any) -> Any:
    """BERT's pooler was trained for next-sentence prediction; weights without a use would also stall DDP."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder
