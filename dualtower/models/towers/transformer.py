"""Any encoder of Hugging Face Transformers as a text tower."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dualtower.errors import ConfigError
from dualtower.models.heads.projection import dense_layers
from dualtower.models.towers.base import Features, Tower, end_places, pool_tokens, token_at
from dualtower.models.towers.checkpoint_rules import CLIP, SIGLIP, CheckpointRule, checkpoint_rule
from dualtower.models.towers.config import TextTowerConfig

__all__ = ["TransformerTower", "complete_encoder", "pretrained_encoder"]

# Parts of a Transformers config that say where it came from, not what is built.
_PROVENANCE = ("transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
_TWO_TOWERS = ("clip", "siglip", "siglip2")
_OLD_CLIP_EOS = 2
"""In the configs of the first CLIPs `eos_token_id` is 2, which is not their end-of-text token; that one has the highest
id of all (https://github.com/huggingface/transformers/pull/24773)."""


class TransformerTower(Tower):
    """A Transformers encoder (https://arxiv.org/abs/1810.04805), pooled, and what its checkpoint puts after that.

    Args:
        config: With `encoder` filled in, see `complete_encoder`. The weights are fresh; nothing is downloaded.

    Raises:
        ConfigError: Transformers cannot build a text encoder from `config.encoder`, or it has no such pooling.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        from transformers import AutoModel

        encoder_config = _encoder_config(config)
        model_type = encoder_config.model_type
        self.pooling = config.token_pooling("mean")
        self.encoder = _fitted(
            _siglip_class(model_type)(encoder_config)
            if model_type in SIGLIP
            else AutoModel.from_config(encoder_config, trust_remote_code=False),
            config,
        )
        # Where texts are padded to a fixed length, a SigLIP reads the padding, as it was trained to.
        self.reads_padding = model_type in SIGLIP and config.padding == "fixed"
        self.end = _end_token(encoder_config) if self.pooling == "eos" else None
        self.token_width = encoder_config.hidden_size
        self.projection = dense_layers(
            _pooled_width(encoder_config, self.pooling), config.projection, normalize=config.normalize
        )
        self.width = config.projection[-1].width if config.projection else _pooled_width(encoder_config, self.pooling)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Encode ``[B, L]`` token ids."""
        states = self.encoder(input_ids=input_ids, attention_mask=None if self.reads_padding else attention_mask)
        tokens, mask = states.last_hidden_state, attention_mask.bool()
        if self.pooling == "pooler":
            pooled = states.pooler_output
        elif self.pooling == "eos":
            pooled = token_at(tokens, end_places(input_ids, mask, self.end))
        else:
            pooled = pool_tokens(tokens, mask, self.pooling)
        return Features(self.projection(pooled), tokens, mask)

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


def pretrained_encoder(config: TextTowerConfig, tokenizer: Any) -> tuple[dict[str, Tensor], TextTowerConfig]:
    """Load the encoder that `config.pretrained` names, from a folder or the Hub, and what its checkpoint adds to it.

    Args:
        config: The pooling and padding that it names come before those of the checkpoint.
        tokenizer: Tokenizer of the texts.

    Returns:
        Weights of a `TransformerTower`, and its config: `config` with `encoder` and the checkpoint's rule filled in.

    Raises:
        ConfigError: It cannot be found or loaded, is no text encoder, lacks weights, or follows a rule that cannot be
            taken over.
    """
    from transformers import AutoConfig, AutoModel

    name = str(config.pretrained)
    try:
        encoder_config = _text_part(AutoConfig.from_pretrained(name, trust_remote_code=False))
        config = replace(config, encoder=_plain(encoder_config))
        _encoder_config(config)
        rule = checkpoint_rule(name, encoder_config)
        config = _with_rule(config, rule, tokenizer)
        model_type = encoder_config.model_type
        loader = _siglip_class(model_type) if model_type in SIGLIP else AutoModel
        encoder, found = loader.from_pretrained(name, config=encoder_config, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"no Transformers encoder in text.pretrained = {name!r}; "
            f"give a folder or a Hub id such as 'google-bert/bert-base-uncased' ({error})"
        ) from error
    weights = {f"encoder.{n}": w for n, w in _fitted(encoder, config).float().state_dict().items()}
    if missing := sorted(n for n in found["missing_keys"] if f"encoder.{n}" in weights):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ConfigError(f"text.pretrained = {name!r} lacks weights of its encoder: {missing[0]}{more}")
    return weights | _projection_weights(config, rule), config


def _with_rule(config: TextTowerConfig, rule: CheckpointRule, tokenizer: Any) -> TextTowerConfig:
    """The config with what it leaves to the checkpoint, and what the checkpoint adds, filled in."""
    name, positions = config.pretrained, config.encoder.get("max_position_embeddings")
    if config.padding == "auto" and rule.padding == "fixed" and config.max_length != positions:
        raise ConfigError(
            f"text.pretrained = {name!r} was trained on texts padded to {positions} tokens, and text.max_length is "
            f"{config.max_length}; type --model.text.max-length {positions}, or name a --model.text.padding"
        )
    if rule.lowercase and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]:
        raise ConfigError(
            f"text.pretrained = {name!r} lower-cases texts before its tokenizer, which tells A from a: that cannot be "
            "taken over; give the folder's tokenizer a lower-casing normalizer"
        )
    return replace(
        config,
        pooling=config.token_pooling(rule.pooling),
        padding=rule.padding if config.padding == "auto" else config.padding,
        projection=rule.projection,
        normalize=rule.normalize,
    )


def _projection_weights(config: TextTowerConfig, rule: CheckpointRule) -> dict[str, Tensor]:
    """Weights of the projection, by their names in the tower."""
    width, weights = _pooled_width(_encoder_config(config), config.token_pooling("mean")), {}
    for number, (matrix, bias) in enumerate(rule.weights):
        if matrix.shape[1] != width:
            raise ConfigError(
                f"text.pretrained = {config.pretrained!r}: layer {number + 1} after its pooling takes vectors of "
                f"{matrix.shape[1]}, and they are {width} wide"
            )
        weights[f"projection.{2 * number}.weight"], width = matrix, len(matrix)
        if bias is not None:
            weights[f"projection.{2 * number}.bias"] = bias
    return weights


def _text_part(encoder_config: Any) -> Any:
    """The config itself, or that of the text tower of a CLIP or SigLIP."""
    if encoder_config.model_type not in _TWO_TOWERS:
        return encoder_config
    text = encoder_config.text_config
    if hasattr(encoder_config, "projection_dim"):  # of the space that both towers share
        text.projection_dim = encoder_config.projection_dim
    return text


def _siglip_class(model_type: str) -> Any:
    import transformers

    return getattr(transformers, SIGLIP[model_type])


def _plain(encoder_config: Any) -> dict[str, Any]:
    everything = encoder_config.to_dict()
    return {k: v for k, v in everything.items() if k not in _PROVENANCE and not k.startswith("_")}


def _encoder_config(config: TextTowerConfig) -> Any:
    """The Transformers config object, checked."""
    from transformers import AutoConfig

    values = dict(config.encoder)
    model_type = values.pop("model_type", None)
    try:
        built = (
            _siglip_class(model_type).config_class(**values)
            if model_type in SIGLIP
            else AutoConfig.for_model(model_type, **values)
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"Transformers cannot build text.encoder of model_type {model_type!r}: {error}") from error
    if built.is_encoder_decoder or not isinstance(getattr(built, "hidden_size", None), int):
        raise ConfigError(
            f"{model_type!r} is no text encoder; take one such as BERT, RoBERTa, XLM-R, DistilBERT, CLIP or SigLIP"
        )
    positions = _positions(built)
    if positions is not None and config.max_length > positions:
        raise ConfigError(
            f"text.max_length {config.max_length} is more than the {positions} positions of this {model_type!r} encoder"
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


def _fitted(encoder: Any, config: TextTowerConfig) -> Any:
    """The encoder without a pooler that is not used.

    BERT's was trained for next-sentence prediction; and weights without a use would stall DDP.
    """
    siglip = encoder.config.model_type in SIGLIP
    has_pooler = getattr(encoder, "pooler", None) is not None or siglip or encoder.config.model_type == CLIP
    if config.pooling != "pooler":
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        if siglip:
            getattr(encoder, "text_model", encoder).head = nn.Identity()
    elif not has_pooler:
        raise ConfigError(
            f"text.pooling is 'pooler', and a {encoder.config.model_type!r} encoder has none; "
            "type --model.text.pooling mean, cls or last"
        )
    elif siglip and config.padding != "fixed":
        raise ConfigError(
            "the pooler of a SigLIP takes the last of a fixed number of tokens; type --model.text.padding fixed"
        )
    return encoder


def _pooled_width(encoder_config: Any, pooling: str) -> int:
    """Width of what is pooled; the pooler of a SigLIP projects as well."""
    if pooling == "pooler" and encoder_config.model_type in SIGLIP:
        return int(encoder_config.projection_size)
    return int(encoder_config.hidden_size)


def _end_token(encoder_config: Any) -> int | None:
    """The id of the end-of-text token; None where it is the highest of each text."""
    end = getattr(encoder_config, "eos_token_id", None)
    if not isinstance(end, int):
        raise ConfigError(
            f"text.pooling is 'eos', and this {encoder_config.model_type!r} encoder names no end-of-text token "
            f"(eos_token_id is {end}); type --model.text.pooling last"
        )
    return None if encoder_config.model_type == CLIP and end == _OLD_CLIP_EOS else end
