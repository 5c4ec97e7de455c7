"""What a run is made from besides its config: a resumed run must find the same, or say what has changed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualtower.data.items import ItemDataset
from dualtower.distributed import from_main
from dualtower.errors import CheckpointError, ConfigError
from dualtower.sharding import rank

__all__ = ["check_inputs", "run_inputs", "same_everywhere"]

logger = logging.getLogger(__name__)

PROCESSES, TOKENIZER = "processes", "tokenizer"


def run_inputs(tokenizer: Any, splits: Mapping[str, ItemDataset], *, processes: int) -> dict[str, str]:
    """Describe the inputs of a run, each in a few words that change when it does.

    Args:
        tokenizer: Tokenizer of the model, or None.
        splits: Name -> rows, such as ``train`` and ``validation``.
        processes: That train together; their number decides which rows meet in a batch.
    """
    described = {PROCESSES: str(processes), TOKENIZER: _fingerprint(tokenizer)}
    for name, items in splits.items():
        described[f"split {name}"] = f"{len(items):,} rows, fingerprint {items.rows_fingerprint}"
        described[_images(name)] = f"fingerprint {items.sizes_fingerprint} of their sizes"
    return described


def check_inputs(before: Mapping[str, str], now: Mapping[str, str], *, path: Path, lenient: bool) -> None:
    """Compare a checkpoint's inputs with those of the run that wants to go on from it.

    Args:
        before: What is noted in the checkpoint at `path`; one of an older version has none.
        now: The same of the run.
        path: For messages.
        lenient: Whether images may have changed under unchanged rows: broken ones are left out of the batches then.

    Raises:
        CheckpointError: They differ; says in what, and what to type.
    """
    if not before:
        if now:
            logger.warning("%s does not say from which rows it was trained; they are taken to be the same", path)
        return
    changed = [name for name in before if name in now and before[name] != now[name]]
    if lenient and changed and all(name.startswith(_images("")) for name in changed):
        logger.warning("%s have changed since %s was written; the run goes on with them", " and ".join(changed), path)
        return
    if changed:
        changes = "; ".join(f"{name}: {before[name]} then, {now[name]} now" for name in changed)
        raise CheckpointError(f"{path} was trained from other inputs ({changes}); {_advice(changed, before, path)}")


def same_everywhere(inputs: Mapping[str, str]) -> None:
    """Refuse to train on different data on different machines: the joined batches would be wrong in silence.

    Raises:
        ConfigError: This process has other inputs than the main process.
    """
    main = json.loads(from_main(lambda: json.dumps(inputs).encode()))
    other = [f"{name}: {main[name]} there, {inputs[name]} here" for name in main if main[name] != inputs[name]]
    if other:
        raise ConfigError(
            f"process {rank()} has other inputs than the main process ({'; '.join(other)}); "
            "give all machines the same data and the same packages"
        )


def _advice(changed: list[str], before: Mapping[str, str], path: Path) -> str:
    if PROCESSES in changed:
        return (
            f"the batches depend on the number of processes: launch {before[PROCESSES]} again "
            f"(torchrun --nproc_per_node {before[PROCESSES]} RECIPE ... --resume)"
        )
    run = path.parent.parent
    return (
        "restore what has changed and type --resume again. To train on with the data of now, start another run from "
        f"this one's model: --base {run / 'model'} --out ANOTHER, without --resume; or begin anew with --overwrite"
    )


def _images(split: str) -> str:
    return f"images of {split}"


def _fingerprint(tokenizer: Any) -> str:
    """Over all that decides which ids a text becomes, but not over the padding of the last batch."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    settings = json.dumps({k: v for k, v in parts.items() if k not in ("padding", "truncation")}, sort_keys=True)
    return f"{len(tokenizer):,} tokens, fingerprint {hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()}"
