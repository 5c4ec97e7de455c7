"""Indexes in a catalogue's cache: a file and a JSON per kind of vectors, put in place by a rename, read by checksum."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogueError, ConfigError
from dualtower.folder import write_text_atomically
from dualtower.retrieval.nearest import Index, IndexInfo, index_class, load_faiss

__all__ = ["index_stamp", "load_index", "read_index_info", "save_index"]


def save_index(index: Index, folder: Path) -> IndexInfo:
    """Write an index into a catalogue's cache; the JSON that names it comes last, so readers see the old or the new.

    Raises:
        CatalogueError: The file system refused.
    """
    info = index.info
    name = f"{info.generation}-{info.covered}-{info.kind}-{info.method}.faiss"
    try:
        new = folder / f".{name}.new"
        load_faiss().write_index(index.inner, str(new))
        info = replace(info, file=name, checksum=_checksum(new))
        new.replace(folder / name)
        write_text_atomically(_manifest(folder, info.kind), json.dumps(to_dict(info), indent=2))
    except (OSError, RuntimeError) as error:
        raise CatalogueError(f"cannot write the index of {info.kind} vectors in {folder}: {error}") from error
    for path in folder.glob(f"*-{info.kind}-*.faiss"):
        if path.name != name:
            path.unlink(missing_ok=True)
    return info


def load_index(folder: Path, kind: str, generation: int) -> Index | None:
    """The index of a kind in a catalogue's cache; None where there is none that is whole and of this generation."""
    info = read_index_info(folder, kind)
    if info is None or info.generation != generation:
        return None
    path = folder / info.file
    try:
        if _checksum(path) != info.checksum:
            return None
        return index_class(info.method)(info, load_faiss().read_index(str(path)))
    except (OSError, RuntimeError):
        return None


def read_index_info(folder: Path, kind: str) -> IndexInfo | None:
    """What the cache says of its index of a kind."""
    try:
        return from_dict(IndexInfo, json.loads(_manifest(folder, kind).read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError):
        return None


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


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
