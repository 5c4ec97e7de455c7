"""Indexes in a catalog's cache: a file and a manifest per kind of vectors, put in place by a rename.

A cache is only ever a quicker way to what the catalog says. So an index counts only where its manifest and its file
are as they were written (by checksum), and where the catalog went through the very state that it was built from:
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

import faiss

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogError, DualTowerError
from dualtower.files import atomic_write, write_text_atomically
from dualtower.search.ann.index import Index, IndexInfo, index_class
from dualtower.search.records import State

__all__ = ["index_stamp", "load_index", "read_index_info", "save_index"]

WentThrough = Callable[[State], bool]
"""Whether the catalog stands in a state, or came from there by appending."""
log = logging.getLogger(__name__)


def save_index(index: Index, folder: Path) -> IndexInfo:
    """Write an index into a catalog's cache; its manifest comes last, so readers see the old or the new.

    Raises:
        CatalogError: The file system refused.
    """
    info = index.info
    name = f"{info.state.generation}-{info.covered}-{info.vector_name}-{info.method}.faiss"
    try:
        folder.mkdir(exist_ok=True)  # and not its parents: a catalog that is gone stays gone
        with atomic_write(folder / name) as partial:
            faiss.write_index(index.inner, str(partial))
            info = replace(info, file=name, checksum=_checksum_of_file(partial))
        content = to_dict(info)
        manifest = json.dumps({"index": content, "checksum": _checksum(content)}, indent=2)
        write_text_atomically(_manifest(folder, info.vector_name), manifest)
    except (OSError, RuntimeError) as error:
        raise CatalogError(f"cannot write the index of {info.vector_name} vectors in {folder}: {error}") from error
    for path in folder.glob(f"*-{info.vector_name}-*.faiss"):
        if path.name != name:
            path.unlink(missing_ok=True)
    return info


def load_index(folder: Path, vector_name: str, went_through: WentThrough) -> Index | None:
    """The index of a kind in a catalog's cache; None where there is none that is whole and of this catalog."""
    stamp = index_stamp(folder, vector_name)
    info = read_index_info(folder, vector_name, went_through, thorough=True)
    if info is None:
        return None
    try:
        index = index_class(info.method)(info, faiss.read_index(str(folder / info.file)))
        if index.inner.ntotal != info.covered:
            raise ValueError(f"it holds {index.inner.ntotal:,} vectors, not {info.covered:,}")
        return index
    except (OSError, RuntimeError, ValueError) as error:
        if stamp != index_stamp(folder, vector_name):  # another has taken its place meanwhile
            return load_index(folder, vector_name, went_through)
        _log_unusable(folder / info.file, error)
        return None


def read_index_info(
    folder: Path, vector_name: str, went_through: WentThrough | None = None, *, thorough: bool = False
) -> IndexInfo | None:
    """What the cache says of its index of a kind; None where that is nothing, or nothing that holds.

    Args:
        folder: The cache.
        vector_name: Name of the vectors.
        went_through: Asked about the state that the index was built from; None takes any.
        thorough: Compare the file with its checksum.
    """
    path, stamp = _manifest(folder, vector_name), index_stamp(folder, vector_name)
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
        log.info("the index of %s vectors in %s was built from other rows than the catalog holds", vector_name, folder)
        return None
    if thorough:
        try:
            _check_file(info, folder)
        except (OSError, ValueError) as error:
            if stamp != index_stamp(folder, vector_name):  # another has taken its place meanwhile
                return read_index_info(folder, vector_name, went_through, thorough=True)
            _log_unusable(folder / info.file, error)
            return None
    return info


def index_stamp(folder: Path, vector_name: str) -> int:
    """A number that changes whenever another index of a kind is put into a cache; 0 where there is none."""
    try:
        return os.stat(f"{folder}/{_manifest_name(vector_name)}").st_mtime_ns  # noqa: PTH116 (every search asks: be quick)
    except OSError:
        return 0


def _manifest(folder: Path, vector_name: str) -> Path:
    return folder / _manifest_name(vector_name)


def _manifest_name(vector_name: str) -> str:
    return f"nearest-{vector_name}.json"


def _check_file(info: IndexInfo, folder: Path) -> None:
    if _checksum_of_file(folder / info.file) != info.checksum:
        raise ValueError("it has changed on the disk")


def _log_unusable(path: Path, error: Exception) -> None:
    log.warning("%s cannot be used: %s. All vectors are searched until it is built anew", path, error)


def _checksum(content: object) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _checksum_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
