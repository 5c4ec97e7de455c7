"""How a pretrained checkpoint makes one vector of its encoder's tokens: its pooling, and the layers that follow.

Three families say so. A model of sentence-transformers lists its modules in ``modules.json``
(https://sbert.net/docs/sentence_transformer/usage/custom_models.html); a CLIP takes the end-of-text token and projects
it (https://arxiv.org/abs/2103.00020, section 2.4); a SigLIP takes the last of a fixed number of tokens, padding
included (https://arxiv.org/abs/2303.15343). Any other encoder has no rule, and the mean of its tokens is taken.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dualtower.errors import ConfigError
from dualtower.models.towers.base import TokenPooling
from dualtower.models.towers.config import Activation, DenseConfig

__all__ = ["CLIP", "SIGLIP", "CheckpointRule", "checkpoint_rule"]

logger = logging.getLogger(__name__)

CLIP = "clip_text_model"
SIGLIP = {"siglip_text_model": "SiglipTextModel", "siglip2_text_model": "Siglip2TextModel"}
"""Model types of text encoders that read their padding too, and their classes, which AutoModel does not know."""

_POOLINGS: dict[str, TokenPooling] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "none",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
}
_SENTENCE = "sentence_embedding"


@dataclass(frozen=True)
class CheckpointRule:
    """What a checkpoint does with the tokens of its encoder.

    Attributes:
        pooling: How tokens become one vector.
        padding: What its texts were padded to.
        projection: Layers after the pooling.
        weights: Weights of these layers, each as ``(matrix, bias or None)``.
        normalize: Whether vectors are brought to unit length at last.
        lowercase: Whether texts are lower-cased before they reach the tokenizer.
    """

    pooling: TokenPooling = "mean"
    padding: Literal["longest", "fixed"] = "longest"
    projection: tuple[DenseConfig, ...] = ()
    weights: tuple[tuple[Tensor, Tensor | None], ...] = ()
    normalize: bool = False
    lowercase: bool = False


def checkpoint_rule(name: str, encoder_config: Any) -> CheckpointRule:
    """Read the rule of a checkpoint.

    Args:
        name: Folder or Hub id.
        encoder_config: Transformers config of its text encoder.

    Raises:
        ConfigError: It has a pooling or a module that cannot be taken over.
    """
    if (modules := _file(name, "modules.json")) is not None:
        return _sentence_rule(name, _json(modules))
    if encoder_config.model_type == CLIP:
        return _clip_rule(name, encoder_config)
    return CheckpointRule("pooler", "fixed") if encoder_config.model_type in SIGLIP else CheckpointRule()


def _clip_rule(name: str, encoder_config: Any) -> CheckpointRule:
    """The projection comes along where the checkpoint holds it; a bare text encoder has none."""
    from transformers import CLIPTextModelWithProjection

    model, found = CLIPTextModelWithProjection.from_pretrained(name, config=encoder_config, output_loading_info=True)
    if "text_projection.weight" in found["missing_keys"]:
        return CheckpointRule("eos")
    matrix = model.text_projection.weight.detach().float()
    return CheckpointRule("eos", projection=(DenseConfig(len(matrix), bias=False),), weights=((matrix, None),))


def _sentence_rule(name: str, modules: Any) -> CheckpointRule:
    """Walk through the modules of a sentence-transformers model."""
    try:
        listed = [(module["type"].rpartition(".")[2], module["path"]) for module in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{name}: its modules.json is no list of modules with type and path") from error
    kinds = [kind for kind, _ in listed]
    normalize = kinds[-1:] == ["Normalize"]
    steps = kinds[2:-1] if normalize else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(steps) - {"Dense"}:
        raise ConfigError(
            f"{name}: its modules.json lists {', '.join(kinds)}; what can be taken over is Transformer, Pooling, "
            "any number of Dense, and Normalize at last"
        )
    if listed[0][1]:
        raise ConfigError(
            f"{name}: its Transformer lies in {listed[0][1]}/, as old versions of sentence-transformers saved it; "
            "load and save it with a present one, which puts it at the top"
        )
    _tell_prompts(name)
    lowercase = _settings(name, "sentence_bert_config.json").get("do_lower_case", False)
    rule = CheckpointRule(_pooling(name, listed[1][1]), normalize=normalize, lowercase=bool(lowercase))
    for kind, path in listed[2:]:
        if kind == "Dense":
            layer, weights = _dense(name, path)
            rule = replace(rule, projection=(*rule.projection, layer), weights=(*rule.weights, weights))
    return rule


def _pooling(name: str, path: str) -> TokenPooling:
    settings = _settings(name, f"{path}/config.json", needed=True)
    modes = settings.get("pooling_mode")
    if modes is None:  # one flag for each, of which the mean's is set where it is not named
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if settings.get(flag, mode == "mean")]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ConfigError(
            f"{name}: its pooling is {' + '.join(map(str, modes)) or 'none'}; what can be taken over is one of "
            f"{', '.join(_POOLINGS)}"
        )
    return _POOLINGS[modes[0]]


def _dense(name: str, path: str) -> tuple[DenseConfig, tuple[Tensor, Tensor | None]]:
    """One Dense module and its weights."""
    from safetensors.torch import load_file

    settings = _settings(name, f"{path}/config.json", needed=True)
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise ConfigError(
            f"{name}: the activation of {path} is {activation!r}; what can be taken over is one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    names = {settings.get(f"module_{side}_name") or _SENTENCE for side in ("input", "output")}
    if names != {_SENTENCE}:
        raise ConfigError(f"{name}: {path} works on {', '.join(sorted(names))}; what can be taken over is {_SENTENCE}")
    if (file := _file(name, f"{path}/model.safetensors")) is None:
        raise ConfigError(
            f"{name}: {path} holds no model.safetensors; load and save it with a present version of "
            "sentence-transformers, which writes one"
        )
    weights = load_file(file)
    matrix, bias = weights["linear.weight"].float(), weights.get("linear.bias")
    layer = DenseConfig(len(matrix), bias is not None, _ACTIVATIONS[activation])
    return layer, (matrix, None if bias is None else bias.float())


def _tell_prompts(name: str) -> None:
    """A prompt before every text would be tokens of every title; it is not put there, and the log says so."""
    settings = _settings(name, "config_sentence_transformers.json")
    default = settings.get("default_prompt_name")
    if default is not None and (prompt := (settings.get("prompts") or {}).get(default)):
        logger.warning("%s puts the prompt %r before every text by default; it is left out here", name, prompt)


def _settings(name: str, path: str, *, needed: bool = False) -> Mapping[str, Any]:
    """A JSON object of the checkpoint; an empty one where it is missing and not needed."""
    file = _file(name, path)
    if file is None:
        if needed:
            raise ConfigError(f"{name} holds no {path}, which its modules.json names")
        return {}
    values = _json(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no JSON object")
    return values


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error


def _file(name: str, path: str) -> Path | None:
    """A file of a folder or of a Hub repository, or None where it has no such file."""
    if Path(name).is_dir():
        file = Path(name) / path
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, path))
    except LocalEntryNotFoundError:
        if try_to_load_from_cache(name, path) is None and path == "modules.json":  # not known to be missing
            logger.warning(
                "the Hub cannot be asked whether %s is a model of sentence-transformers; it is taken for a plain "
                "encoder. Name its --model.text.pooling, or load it once with a network",
                name,
            )
        return None
    except EntryNotFoundError:
        return None
