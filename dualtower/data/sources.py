"""Open what a data card names as a source: a Hub dataset, a folder or a file.

Everything becomes a memory-mapped Arrow file in the cache of the `datasets` library (``HF_HOME``), so that a catalog
may be larger than the memory. A local source is one of

- Parquet, CSV, TSV, JSON or JSON Lines, with images as bytes (also in base64), as `datasets` Image, or as paths
  relative to the folder,
- an image folder: images and a ``metadata.{csv,jsonl,parquet}`` with a column ``file_name``,
- images alone, where the card's builder is ``images``: columns ``file_name`` and ``folder``,
- WebDataset: tar shards with ``key.jpg``, ``key.txt``, ``key.json`` ...
- what `datasets` wrote with ``save_to_disk``.

`dualtower.data.layout` says which file belongs to which split.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualtower.data.cards import CardSource, DataCard, is_pattern
from dualtower.data.hub_tables import download_tables
from dualtower.data.layout import SPLIT_WORDS, Layout, find_layout
from dualtower.data.tables import TABLE_SUFFIXES, open_table
from dualtower.errors import CardError, DualTowerError, SourceError, brief

__all__ = ["OpenSource", "open_source"]

logger = logging.getLogger(__name__)

HUB_PREFIX = "hub:"
SAVED = ("state.json", "dataset_info.json")  # what `save_to_disk` writes beside the Arrow files of one dataset


@dataclass(frozen=True)
class OpenSource:
    """An open source.

    Attributes:
        where: The Hub id or path, for messages.
        splits: Split of the source -> `datasets.Dataset` with undecoded images. All have the same columns.
        folder: Where relative image paths start; None for a Hub dataset.
        files: Split of the source -> files that its rows were read from, where they are known.
    """

    where: str
    splits: Mapping[str, Any]
    folder: Path | None
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def open_source(card: DataCard, *, source: str | Path | None = None) -> OpenSource:
    """Open the source of a card, or another one in its place.

    Args:
        card: Names the columns, and the source.
        source: A local folder or file, or ``hub:user/name`` for a Hub dataset, to read in place of the card's.

    Raises:
        SourceError: It is missing, empty or unreadable.
        CardError: A pattern of the card matches no file.
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
    import datasets

    files = {split: value for split, value in card.splits.named.items() if is_pattern(value)} or None
    try:
        builder = datasets.load_dataset_builder(
            hub.hub, name=hub.config, revision=hub.revision, data_files=files, **hub.options
        )
        if tables := download_tables(builder, str(hub.hub)):
            card = replace(card, source=hub)
            splits = {split: _read(card, tables, paths) for split, paths in tables.splits.items()}
        else:
            builder.download_and_prepare()
            splits = builder.as_dataset()
    except DualTowerError:
        raise
    except Exception as error:  # the network, the Hub and the dataset's own files have no common error
        raise SourceError(
            f"cannot load {hub.hub!r} from the Hub: {brief(error)}; check the name and the network, type "
            "`hf auth login` if the dataset is gated, or give a local copy with --data.source FOLDER"
        ) from error
    folder = tables.folder if tables else None
    read = tables.splits if tables else {}
    return OpenSource(f"{hub.hub} on the Hub", _aligned(splits, f"{hub.hub} on the Hub", card), folder, read)


def _open_local(card: DataCard, path: Path) -> OpenSource:
    if (path / "dataset_dict.json").exists() or all((path / name).exists() for name in SAVED):
        return OpenSource(str(path), _aligned(_saved_to_disk(path), str(path), card), path)
    layout = find_layout(card, path)
    logger.info("reading %s as %s: %s", path, layout.builder, ", ".join(layout.splits))
    try:
        splits = {split: _read(card, layout, files) for split, files in layout.splits.items()}
    except DualTowerError:
        raise
    except Exception as error:  # pyarrow and tar readers have no common error
        raise SourceError(f"cannot read {path} as {layout.builder}: {brief(_innermost(error))}") from error
    return OpenSource(str(path), _aligned(splits, str(path), card), layout.folder, layout.splits)


def _saved_to_disk(path: Path) -> dict[str, Any]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        raise SourceError(f"cannot read what save_to_disk wrote in {path}: {brief(_innermost(error))}") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def _read(card: DataCard, layout: Layout, files: Sequence[Path]) -> Any:
    """The rows of one split."""
    if layout.builder == "images":
        return _images_alone(layout.folder, files)
    columns = card.columns.named()
    if all(file.suffix.lower() in TABLE_SUFFIXES for file in files):
        as_text = {name for role in ("id", "product_id", "text", "image") for name in columns[role]}
        as_text |= {card.splits.by_hash.column} if card.splits.by_hash else set()
        return open_table(
            files,
            known=sorted({name for names in columns.values() for name in names}),
            as_text=sorted(as_text),
            options=card.source.options,
            images=layout.folder if layout.builder == "imagefolder" else None,
        )
    if layout.builder == "parquet":
        return _read_parquet(files, card)
    if layout.builder == "imagefolder":  # `datasets` wants to be told of the images as well
        files = sorted({p for file in files for p in file.parent.rglob("*") if p.is_file()})
    return _load(layout.builder, files, card)


def _images_alone(folder: Path, files: Sequence[Path]) -> Any:
    """A row per file: its path, which is its id too, and the folder that it lies in."""
    import datasets

    names = [file.relative_to(folder) for file in files]
    folders = [None if name.parent == Path() else name.parent.as_posix() for name in names]
    columns = {"file_name": [name.as_posix() for name in names], "folder": folders}
    return datasets.Dataset.from_dict(columns, datasets.Features(dict.fromkeys(columns, datasets.Value("string"))))


def _load(builder: str, files: Sequence[Path], card: DataCard) -> Any:
    import datasets

    names = [glob.escape(str(file)) for file in files]
    chatty = logging.getLogger("datasets")
    level = chatty.level
    chatty.setLevel(logging.CRITICAL)  # it would print each error before it raises it
    try:
        return datasets.load_dataset(builder, data_files={"rows": names}, **card.source.options)["rows"]
    finally:
        chatty.setLevel(level)


def _read_parquet(files: Sequence[Path], card: DataCard) -> Any:
    """Files of any schemas; `datasets` reads only files of one."""
    import datasets
    import pyarrow.parquet as parquet

    groups: dict[Any, tuple[Any, list[Path]]] = {}  # by what the files hold, not by what their writer noted about them
    for file in files:
        with parquet.ParquetFile(file) as opened:
            _, group = groups.setdefault(opened.schema_arrow.remove_metadata(), (opened.schema_arrow, []))
            if opened.metadata.num_rows:  # a file without rows is an error to `datasets`
                group.append(file)
    tables = [
        _load("parquet", group, card)
        if group
        else datasets.Dataset.from_dict(
            {name: [] for name in schema.names}, features=datasets.Features.from_arrow_schema(schema)
        )
        for schema, group in groups.values()
    ]
    return tables[0] if len(tables) == 1 else _joined(tables)


def _joined(tables: Sequence[Any]) -> Any:
    """One table of several; what a part lacks is missing there, numbers beside texts become texts."""
    import datasets

    dtypes: dict[str, list[Any]] = {}
    for table in tables:
        for name, dtype in table.features.items():
            if dtype not in dtypes.setdefault(name, []):
                dtypes[name].append(dtype)
    wanted = {name: _common_kind(found) for name, found in dtypes.items() if len(found) > 1}
    cast = []
    for table in tables:
        for name, dtype in wanted.items():
            if dtype is not None and name in table.features and table.features[name] != dtype:
                table = table.cast_column(name, dtype)
        cast.append(table)
    return datasets.concatenate_datasets(cast)


def _common_kind(dtypes: Iterable[Any]) -> Any:
    """The feature for plain values of several kinds; None where some are no plain values."""
    import datasets

    if not all(isinstance(dtype, datasets.Value) for dtype in dtypes):
        return None
    names = {dtype.dtype for dtype in dtypes} - {"null"}
    if all(name.startswith(("int", "uint", "float")) for name in names):
        return datasets.Value("float64" if any(name.startswith("float") for name in names) else "int64")
    return datasets.Value(next(iter(names)) if len(names) == 1 else "string")


def _aligned(splits: Mapping[str, Any], where: str, card: DataCard) -> dict[str, Any]:
    """The usual splits first, each with the columns of all."""
    import datasets

    if "all" in splits:
        others = {name: dataset for name, dataset in splits.items() if name != "all"}
        if others and not card.splits.named:
            raise CardError(
                f"{where}: 'all' means every row here; say in splits.named which to use of {brief([*others])}"
            )
        splits = others or {"train": splits["all"]}
    usual = list(dict.fromkeys(SPLIT_WORDS.values()))
    order = sorted(splits, key=lambda name: usual.index(name) if name in usual else len(usual))
    names = dict.fromkeys(name for split in order for name in splits[split].column_names)
    aligned = {}
    for split in order:
        dataset = splits[split]
        if lacking := [name for name in names if name not in dataset.column_names]:
            logger.warning("%s: split %s has no column %s; it is missing in its rows", where, split, ", ".join(lacking))
            nothing = datasets.Dataset.from_dict({name: [None] * len(dataset) for name in lacking})
            dataset = datasets.concatenate_datasets([dataset, nothing], axis=1)
        aligned[split] = dataset
    return aligned


def _innermost(error: BaseException) -> BaseException:
    """`datasets` wraps what happened into "an error occurred"; the cause is what helps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
