"""Indexes in a catalogue's cache: a file and a manifest per kind of vectors, put in place by a rename.

A cache is only ever a quicker way to what the catalogue says. So an index counts only where its manifest and its file
are as they were written (by checksum), and where the catalogue went through the very state that it was built from:
beside rows that were restored from a backup, or copied from elsewhere, the same numbers may stand for other rows.
Whatever else lies in the cache is as good as nothing; the log says so, and the next rebuild puts an index in its place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogueError, DualTowerError
from dualtower.folder import write_text_atomically
from dualtower.retrieval.nearest import Index, IndexInfo, index_class, load_faiss
from dualtower.retrieval.records import State
from dualtower.retrieval.scratch import scratch_folder

__all__ = ["index_stamp", "load_index", "read_index_info", "save_index"]

WentThrough = Callable[[State], bool]
"""Whether the catalogue stands in a state, or came from there by appending."""
log = logging.getLogger(__name__)


def save_index(index: Index, folder: Path) -> IndexInfo:
    """Write an index into a catalogue's cache; its manifest comes last, so readers see the old or the new.

    Raises:
        CatalogueError: The file system refused.
    """
    info = index.info
    name = f"{info.state.generation}-{info.covered}-{info.kind}-{info.method}.faiss"
    try:
        folder.mkdir(exist_ok=True)
        with scratch_folder(folder) as scratch:
            load_faiss().write_index(index.inner, str(scratch / name))
            info = replace(info, file=name, checksum=_checksum_of_file(scratch / name))
            (scratch / name).replace(folder / name)
        content = to_dict(info)
        manifest = json.dumps({"index": content, "checksum": _checksum(content)}, indent=2)
        write_text_atomically(_manifest(folder, info.kind), manifest)
    except (OSError, RuntimeError) as error:
        raise CatalogueError(f"cannot write the index of {info.kind} vectors in {folder}: {error}") from error
    for path in folder.glob(f"*-{info.kind}-*.faiss"):
        if path.name != name:
            path.unlink(missing_ok=True)
    return info


def load_index(folder: Path, kind: str, went_through: WentThrough) -> Index | None:
    """The index of a kind in a catalogue's cache; None where there is none that is whole and of this catalogue."""
    info = read_index_info(folder, kind, went_through)
    if info is None or not _is_whole(info, folder):
        return None
    path = folder / info.file
    try:
        index = index_class(info.method)(info, load_faiss().read_index(str(path)))
        if index.inner.ntotal != info.covered:
            raise ValueError(f"it holds {index.inner.ntotal:,} vectors, not {info.covered:,}")
        return index
    except (OSError, RuntimeError, ValueError) as error:
        log.warning("%s cannot be used: %s", path, error)
        return None


def read_index_info(
    folder: Path, kind: str, went_through: WentThrough | None = None, *, thorough: bool = False
) -> IndexInfo | None:
    """What the cache says of its index of a kind; None where that is nothing, or nothing that holds.

    Args:
        folder: The cache.
        kind: Of the vectors.
        went_through: Asked about the state that the index was built from; None takes any.
        thorough: Compare the file with its checksum.
    """
    path = _manifest(folder, kind)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        content = manifest["index"]
        if manifest["checksum"] != _checksum(content):
            raise ValueError("its checksum is another")
        info = from_dict(IndexInfo, content)
        index_class(info.method)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, DualTowerError) as error:
        log.warning("%s cannot be used: %s", path, error)
        return None
    if went_through is not None and not went_through(info.state):
        log.info("the index of %s vectors in %s was built from other rows than the catalogue holds", kind, folder)
        return None
    return info if not thorough or _is_whole(info, folder) else None


def index_stamp(folder: Path, kind: str) -> int:
    """A number that changes whenever another index of a kind is put into a cache; 0 where there is none."""
    try:
        return os.stat(f"{folder}/{_manifest_name(kind)}").st_mtime_ns  # noqa: PTH116 (every search asks: be quick)
    except OSError:
        return 0


def _manifest(folder: Path, kind: str) -> Path:
    return folder / _manifest_name(kind)


def _manifest_name(kind: str) -> str:
    return f"nearest-{kind}.json"


def _is_whole(info: IndexInfo, folder: Path) -> bool:
    path, problem = folder / info.file, "it has changed on the disk"
    try:
        if _checksum_of_file(path) == info.checksum:
            return True
    except OSError as error:
        problem = str(error)
    log.warning("%s cannot be used: %s. All vectors are searched until it is built anew", path, problem)
    return False


def _checksum(content: object) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _checksum_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
