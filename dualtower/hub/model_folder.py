"""The model folder: everything that a dual tower needs, in four parts, and nothing that needs pickle.

::

    config.json         version of dualtower, fingerprint, model config (with the whole encoder config)
    model.safetensors   weights
    tokenizer/          a Transformers tokenizer; absent where the model has no text tower
    README.md           model card

A folder is written beside its place and renamed, so there is never half a model. Loading is strict: towers are built
from the config without asking the Hub, and every weight must be there, with its shape, and no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualtower.data.transforms.tokenizer import load_tokenizer
from dualtower.errors import ConfigError, ModelFolderError, UnknownKey
from dualtower.files import sync
from dualtower.version import __version__

__all__ = [
    "FolderParts",
    "current_folder",
    "fingerprint_of",
    "is_model_folder",
    "load_weights",
    "read_folder",
    "write_folder",
]

CONFIG, WEIGHTS, TOKENIZER, README = "config.json", "model.safetensors", "tokenizer", "README.md"
PARTS = (CONFIG, WEIGHTS, TOKENIZER, README)
_LEFT_BY_DOWNLOADS = (".cache", ".gitattributes")
_KEYS = ("dualtower", "fingerprint", "model")
_EARLIER_NAMES = {("mirror",): "flip_tta", ("fusion", "kind"): "method"}  # of folders that earlier versions wrote


@dataclass(frozen=True)
class FolderParts:
    """What stands in a model folder.

    Attributes:
        config: The model config as plain values.
        weights: State dict.
        tokenizer: A Transformers tokenizer, or None for a model without a text tower.
        readme: Text of the model card.
        fingerprint: Fingerprint of config and weights when they were saved.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: Any
    readme: str
    fingerprint: str


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model of dualtower; timm's and Transformers' own have files of the same names."""
    try:
        return "dualtower" in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write_folder(folder: Path, parts: FolderParts) -> Path:
    """Write a model folder, all or nothing, and return it.

    Raises:
        ModelFolderError: The file system refused (disk full, no permission), or something else lies there. What was
            there is untouched.
    """
    _finish_replacement(folder)
    _refuse_foreign(folder)
    partial = _beside(folder, f"partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_parts(partial, parts)
        _replace_folder(folder, partial)
    except Exception as error:  # tokenizers and safetensors report a full disk with classes of their own
        raise ModelFolderError(
            f"cannot write {folder}: {error}. A model that was there is intact; make room, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_folder(folder: Path) -> FolderParts:
    """Read the parts of a model folder.

    Raises:
        ModelFolderError: A part is missing or unreadable.
        UnknownKey: `config.json` holds a key that this version does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _read_config(folder / CONFIG) if (folder / CONFIG).exists() else {"model": {}}
    reads_text = config["model"].get("text", {}) is not None
    needed = (CONFIG, WEIGHTS, TOKENIZER) if reads_text else (CONFIG, WEIGHTS)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise ModelFolderError(
            f"{folder} is no complete model of dualtower; missing: {', '.join(missing)}. "
            "Give a folder that save_pretrained wrote (a run keeps it in its model/), or user/name on the Hub"
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{folder / WEIGHTS} is broken: {error}; save or download the model again") from error
    try:
        tokenizer = load_tokenizer(folder / TOKENIZER, local_files_only=True) if reads_text else None
    except ConfigError as error:
        raise ModelFolderError(f"{folder / TOKENIZER} holds no tokenizer: {error}") from error
    readme = folder / README
    return FolderParts(
        config=_with_present_names(config["model"]),
        weights=weights,
        tokenizer=tokenizer,
        readme=readme.read_text(encoding="utf-8") if readme.exists() else "",
        fingerprint=str(config.get("fingerprint", "")),
    )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: Path) -> None:
    """Load a state dict strictly.

    Raises:
        ModelFolderError: Weights are missing, extra, or of another shape; names them.
    """
    expected = model.state_dict()
    problems = [f"missing: {name}" for name in expected.keys() - weights.keys()]
    problems += [f"extra: {name}" for name in weights.keys() - expected.keys()]
    problems += [
        f"shape of {name}: {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        shown = "; ".join(sorted(problems)[:8]) + more
        raise ModelFolderError(f"{where} does not fit the model in its config.json: {shown}")
    model.load_state_dict(weights)


def fingerprint_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Short hex over config and weights, the same on every machine."""
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_parts(folder: Path, parts: FolderParts) -> None:
    from safetensors.torch import save_file

    config = {"dualtower": __version__, "fingerprint": parts.fingerprint, "model": parts.config}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / README).write_text(parts.readme, encoding="utf-8")
    if parts.tokenizer is not None:
        parts.tokenizer.save_pretrained(str(folder / TOKENIZER))
    # Memory order (channels_last) and shared storage are the running model's business.
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors lets nobody but the owner read; the other files have what the user's umask says.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode & 0o666)
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict) or "dualtower" not in config:
        raise ModelFolderError(f"{path} is not the config of a dualtower model")
    for key in config:
        if key not in _KEYS:
            raise UnknownKey(f"key in {path}", key, _KEYS)
    return config


def _with_present_names(config: dict[str, Any]) -> dict[str, Any]:
    """A model config with today's names of its keys."""
    for (*path, old), new in _EARLIER_NAMES.items():
        part: Any = config
        for name in path:
            part = part.get(name) or {}
        if old in part:
            part[new] = part.pop(old)
    return config


def _refuse_foreign(folder: Path) -> None:
    """Only an empty folder or a model is replaced: everything in it goes."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is a file; choose a folder")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in (*PARTS, *_LEFT_BY_DOWNLOADS))
    config = folder / CONFIG
    if not foreign and config.exists() and '"dualtower"' not in config.read_text(encoding="utf-8"):
        foreign = [CONFIG]
    if foreign:
        raise ModelFolderError(
            f"{folder} holds what is no part of a dualtower model ({', '.join(foreign[:5])}); choose another folder"
        )


def _replace_folder(folder: Path, new: Path) -> None:
    """Put `new` where `folder` is; between the two renames `current_folder` knows the old model's name."""
    folder, previous = folder.resolve(), _beside(folder, "previous")
    if folder.exists():
        folder.rename(previous)
    try:
        new.rename(folder)
    except OSError:
        if previous.exists():
            previous.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def current_folder(folder: Path) -> Path:
    """Where the model of a folder is to be read: beside it, if a process was killed between the two renames."""
    previous = _beside(folder, "previous")
    return previous if previous.is_dir() and not folder.exists() else folder


def _finish_replacement(folder: Path) -> None:
    """Clean up after a process that was killed inside `_replace_folder`."""
    previous = _beside(folder, "previous")
    if current_folder(folder) == previous:
        previous.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _beside(folder: Path, role: str) -> Path:
    resolved = folder.resolve()  # a link to a folder stays a link
    return resolved.with_name(f".{resolved.name}.{role}")
