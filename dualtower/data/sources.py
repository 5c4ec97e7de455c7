"""Open what a data card names as a source: a Hub dataset, a folder or a file.

Reading is left to the `datasets` library, which turns every format into a memory-mapped Arrow file in its
cache (``HF_HOME``), so that a catalogue may be larger than the memory. A local source is one of

- Parquet, CSV, TSV, JSON or JSON Lines, with pictures as bytes, as `datasets` Image, or as paths relative to
  the folder,
- an image folder: pictures and a ``metadata.{csv,jsonl,parquet}`` with a column ``file_name``,
- WebDataset: tar shards with ``key.jpg``, ``key.txt``, ``key.json`` ...

A file's split is the split word in its path (``train-00000-of-00004.parquet``, ``test/shop.csv``), else its
own name without a running number.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualtower.data.cards import CardSource, DataCard, is_pattern
from dualtower.errors import SourceError, UnknownName

__all__ = ["OpenSource", "open_source"]

logger = logging.getLogger(__name__)

# Which builder reads which files; where a folder has several kinds, the first one here.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "webdataset": (".tar",),
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv"),
    "json": (".jsonl", ".json"),
}
HUB_PREFIX = "hub:"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class OpenSource:
    """An open source.

    Attributes:
        where: The Hub id or path, for messages.
        splits: Split of the source -> `datasets.Dataset`, whose Arrow columns hold undecoded pictures.
        folder: Where relative picture paths start; None for a Hub dataset.
    """

    where: str
    splits: Mapping[str, Any]
    folder: Path | None


def open_source(card: DataCard, *, source: str | Path | None = None) -> OpenSource:
    """Open the source of a card, or another one in its place.

    Args:
        card: Names the columns, and the source.
        source: A local folder or file, or ``hub:user/name`` for a Hub dataset, to read in place of the card's.

    Raises:
        SourceError: It is missing, empty or unreadable.
    """
    if source is not None and str(source).startswith(HUB_PREFIX):
        return _open_hub(card, CardSource(hub=str(source).removeprefix(HUB_PREFIX)))
    if source is not None:
        return _open_local(card, Path(source))
    if card.source.path is not None:
        return _open_local(card, (card.path.parent if card.path else Path()) / card.source.path)
    if card.source.hub is not None:
        return _open_hub(card, card.source)
    raise SourceError(f"card {card.name!r} names no source; type --data.source FOLDER")


def _open_hub(card: DataCard, hub: CardSource) -> OpenSource:
    files = _patterns(card) or None
    try:
        splits = _load(hub.hub, name=hub.config, revision=hub.revision, data_files=files, **hub.options)
    except Exception as error:  # the network, the Hub and the dataset's own files have no common error
        raise SourceError(
            f"cannot load {hub.hub!r} from the Hub: {error}; check the name and the network, type "
            "`hf auth login` if the dataset is gated, or give a local copy with --data.source FOLDER"
        ) from error
    return OpenSource(f"{hub.hub} on the Hub", splits, None)


def _open_local(card: DataCard, path: Path) -> OpenSource:
    if not path.exists():
        raise SourceError(f"no source at {path}; give a folder or file that exists, or hub:user/name")
    folder = path if path.is_dir() else path.parent
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    builder = card.source.builder or _builder(path, files)
    options = _csv_options(card, files) if builder == "csv" else {}
    data_files: dict[str, Any]
    if patterns := _patterns(card):
        data_files = {split: f"{glob.escape(str(folder))}/{pattern}" for split, pattern in patterns.items()}
    elif builder == "imagefolder":
        data_files = _image_folders(folder, files)
    else:
        data_files = _data_files(builder, folder, files)
    logger.info("reading %s as %s: %s", path, builder, ", ".join(data_files))
    try:
        splits = _load(builder, data_files=data_files, **{**options, **card.source.options})
    except Exception as error:  # pyarrow, csv, json and tar readers have no common error
        raise SourceError(f"cannot read {path} as {builder}: {_innermost(error)}") from error
    return OpenSource(str(path), splits, folder)


def _load(*args: Any, **options: Any) -> dict[str, Any]:
    import datasets

    splits = dict(datasets.load_dataset(*args, **options))
    usual = list(dict.fromkeys(SPLIT_WORDS.values()))
    return dict(sorted(splits.items(), key=lambda item: usual.index(item[0]) if item[0] in usual else len(usual)))


def _csv_options(card: DataCard, files: list[Path]) -> dict[str, Any]:
    """Keep what the file says: "007" is an id, not the number 7, and "None" is a word, not a missing value."""
    names = card.columns.named()
    as_text = [name for role in ("id", "product_id", "text") for name in names[role]]
    tabs = {"sep": "\t"} if any(p.suffix == ".tsv" for p in files) else {}
    return {"keep_default_na": False, "converters": dict.fromkeys(as_text, str), **tabs}


def _patterns(card: DataCard) -> dict[str, str]:
    """The named splits that are file patterns."""
    return {split: value for split, value in card.splits.named.items() if is_pattern(value)}


def _builder(path: Path, files: list[Path]) -> str:
    """The `datasets` builder that reads these files."""
    if not files:
        raise SourceError(f"{path} is empty; known sources are {_known()}")
    has_pictures = any(p.suffix.lower() in PICTURES for p in files)
    if has_pictures and any(p.name in METADATA for p in files):
        return "imagefolder"
    for builder, suffixes in SUFFIXES.items():
        if any(p.suffix.lower() in suffixes for p in files):
            return builder
    hint = "; pictures alone have no titles: add a metadata.csv with file_name and title" if has_pictures else ""
    raise SourceError(f"{path} holds no file of a known kind; known are {_known()}{hint}")


def _known() -> str:
    return ", ".join(f"*{s}" for suffixes in SUFFIXES.values() for s in suffixes) + ", pictures with metadata.csv"


def _data_files(builder: str, folder: Path, files: list[Path]) -> dict[str, list[str]]:
    """Split -> files."""
    if builder not in SUFFIXES:
        raise UnknownName("builder", builder, [*SUFFIXES, "imagefolder"])
    chosen: dict[str, list[str]] = {}
    for file in files:
        if file.suffix.lower() in SUFFIXES[builder]:
            chosen.setdefault(_split_of(file.relative_to(folder)), []).append(glob.escape(str(file)))
    return chosen


def _split_of(file: Path) -> str:
    for part in (*file.parts[:-1], file.stem):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    stem = re.sub(r"[-_.]?\d+([-_]of[-_]\d+)?$", "", file.stem)
    return re.sub(r"\W", "_", stem) or "train"  # `datasets` takes only words as names of splits


def _image_folders(folder: Path, files: list[Path]) -> dict[str, list[str]]:
    """Split -> pattern of everything below the folder that holds the split's metadata file."""
    parents = {p.parent for p in files if p.name in METADATA}
    if folder in parents:
        return {"train": [f"{glob.escape(str(folder))}/**"]}
    return {_split_of(p.relative_to(folder)): [f"{glob.escape(str(p))}/**"] for p in sorted(parents)}


def _innermost(error: BaseException) -> BaseException:
    """`datasets` wraps what happened into "an error occurred"; the cause is what helps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
