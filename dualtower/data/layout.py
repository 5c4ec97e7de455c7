"""Which files of a folder are the catalog, how they are read, and which split each belongs to.

A file belongs to the split whose word stands in its path (``train-00000-of-00004.parquet``, ``test/shop.csv``), or to
the one that the card names: by a pattern of files (``"holdout-*.csv"``), or by the file's name without a running
number. All other files together are ``train``, whatever they are called.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualtower.data.cards import DataCard, is_pattern
from dualtower.errors import CardError, SourceError, UnknownName, brief

__all__ = ["METADATA", "SPLIT_WORDS", "Layout", "find_layout"]

logger = logging.getLogger(__name__)

# Which builder reads which files; where a folder has several kinds, the first one here.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "webdataset": (".tar",),
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv"),
    "json": (".jsonl", ".json"),
}
KNOWN = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NOT_ROWS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The files of a local source.

    Attributes:
        folder: Relative image paths start here.
        builder: What reads them: parquet, csv, json, imagefolder, webdataset, or images where there is nothing else.
        splits: Split -> files.
    """

    folder: Path
    builder: str
    splits: Mapping[str, Sequence[Path]]


def find_layout(card: DataCard, path: Path) -> Layout:
    """Look at a folder or file.

    Raises:
        SourceError: It is missing, or holds no file of a known kind.
        CardError: The card names a pattern that no file matches.
        UnknownName: The card names an unknown builder.
    """
    if not path.exists():
        raise SourceError(f"no source at {path}; give a folder or file that exists, or hub:user/name")
    folder = path if path.is_dir() else path.parent
    files = sorted(p for p in path.rglob("*") if p.is_file() and _counts(p, path)) if path.is_dir() else [path]
    if not files:
        raise SourceError(f"{path} is empty; known sources are {_known()}")
    matched = _matched(card, folder, files)
    only_patterns = bool(matched) and all(map(is_pattern, card.splits.named.values()))
    builder = card.source.builder or _builder(path, sorted(set().union(*matched.values())) if only_patterns else files)
    taken = {file for group in matched.values() for file in group}
    splits = {split: list(group) for split, group in matched.items()}
    for file in _tables(builder, files) if not only_patterns else []:
        if file not in taken:
            splits.setdefault(_split_of(file.relative_to(folder), builder, card), []).append(file)
    used = {file for group in splits.values() for file in group}
    if left_out := [file for file in files if file.suffix.lower() in KNOWN and file not in used]:
        names = brief(", ".join(str(file.relative_to(folder)) for file in left_out))
        logger.warning("%s is read as %s; left out: %s", path, builder, names)
    if not splits:
        raise SourceError(f"{path} holds no file for {builder}; known sources are {_known()}")
    return Layout(folder, builder, splits)


def _counts(file: Path, folder: Path) -> bool:
    """Neither hidden (``.ipynb_checkpoints``) nor what a writer keeps for itself (``_temporary``, ``__MACOSX``)."""
    *folders, name = file.relative_to(folder).parts
    return not name.startswith((".", "._")) and not any(part.startswith((".", "_")) for part in folders)


def _matched(card: DataCard, folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Split -> files, for the named splits that are patterns."""
    found: dict[str, list[Path]] = {}
    owner: dict[Path, str] = {}
    for split, pattern in card.splits.named.items():
        if not is_pattern(pattern):
            continue
        found[split] = sorted(set(folder.glob(pattern)) & set(files))
        if not found[split]:
            names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
            raise CardError(
                f"{folder}: no file matches {pattern!r}, which the card names as {split}; there are {brief(names)}"
            )
        for file in found[split]:
            if owner.setdefault(file, split) != split:
                raise CardError(f"{file} belongs to {owner[file]} and to {split}; let one pattern leave it out")
    return found


def _builder(path: Path, files: Sequence[Path]) -> str:
    has_images = any(p.suffix.lower() in IMAGES for p in files)
    if has_images and any(p.name in METADATA for p in files):
        return "imagefolder"
    for builder in SUFFIXES:
        if _tables(builder, files):
            return builder
    columns = "file_name and title, or file_name and the id of the product" if has_images else ""
    alone = "--data.card image_folder takes a folder of images alone"
    hint = f"; images alone say nothing of products: add a metadata.csv with {columns}; {alone}" if has_images else ""
    if any(p.suffix == ".arrow" for p in files):
        hint = "; of what save_to_disk wrote, give the folder with dataset_dict.json or state.json"
    raise SourceError(f"{path} holds no file of a known kind; known are {_known()}{hint}")


def _tables(builder: str, files: Sequence[Path]) -> list[Path]:
    """Those of the files that hold rows."""
    if builder == "imagefolder":
        return [file for file in files if file.name in METADATA]
    if builder == "images":
        return [file for file in files if file.suffix.lower() in IMAGES]
    if builder not in SUFFIXES:
        raise UnknownName("builder", builder, [*SUFFIXES, "imagefolder", "images"])
    tables = [file for file in files if file.suffix.lower() in SUFFIXES[builder] and file.name not in NOT_ROWS]
    lines = [file for file in tables if file.suffix.lower() == ".jsonl"]
    return lines or tables  # beside JSON Lines, other JSON is settings


def _split_of(file: Path, builder: str, card: DataCard) -> str:
    """Find the split in the parts of a path below the source; a metadata file belongs with its folder."""
    parts = [*file.parts[:-1], *([] if builder in ("imagefolder", "images") else [file.stem])]
    for part in parts:
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    name = re.sub(r"[-_.]?\d+([-_]of[-_]\d+)?$", "", parts[-1]) if parts else ""
    return name if name in card.splits.named.values() else "train"


def _known() -> str:
    return ", ".join(f"*{suffix}" for suffix in KNOWN) + ", images with metadata.csv"
