"""The tokenizer of a run: one for all its processes, kept in its folder, and the same when it goes on."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualtower.data.transforms.tokenizer import load_tokenizer, train_tokenizer
from dualtower.distributed import from_main
from dualtower.sharding import rank
from dualtower.training.checkpoint import latest_checkpoint
from dualtower.training.config import RunConfig

__all__ = ["shared_tokenizer"]


def shared_tokenizer(config: RunConfig, texts: Sequence[Sequence[str]]) -> Any:
    """The tokenizer of the pretrained text tower, or one that is trained on the catalog.

    The main process loads or trains it and keeps it in ``config.out/tokenizer``, from where a resumed run takes it
    even if the catalog has grown. The others get its files from the main process.

    Args:
        config: The run.
        texts: Captions of each row of the training split.

    Raises:
        ConfigError: There is no such pretrained tokenizer, or the vocabulary is too small.
    """
    kept = config.out / "tokenizer"
    files = json.loads(from_main(lambda: json.dumps(_files(_keep(config, texts, kept))).encode()))
    if rank() == 0:
        return load_tokenizer(kept, local_files_only=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(base64.b64decode(content))
        return load_tokenizer(folder, local_files_only=True)


def _keep(config: RunConfig, texts: Sequence[Sequence[str]], kept: Path) -> Path:
    """Write the tokenizer into the run's folder, unless a checkpoint there was trained with the one that it holds."""
    if config.resume and kept.is_dir() and latest_checkpoint(config.out / "checkpoints") is not None:
        return kept
    text = config.model.text
    assert text is not None
    tokenizer = (
        load_tokenizer(text.pretrained)
        if text.pretrained
        else train_tokenizer((t for captions in texts for t in captions), vocab_size=text.vocab_size)
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f".tokenizer.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(str(partial))
    shutil.rmtree(kept, ignore_errors=True)
    partial.rename(kept)
    return kept


def _files(folder: Path) -> dict[str, str]:
    return {
        path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(folder.iterdir()) if path.is_file()
    }
