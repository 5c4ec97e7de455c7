"""The rows of one split of an open source, from the file that was made of it before or read anew."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

from dualtower.data.cards import DataCard
from dualtower.data.rows.blocks import read_blocks
from dualtower.data.rows.cache import row_file
from dualtower.data.rows.file import RowFile
from dualtower.data.sources import OpenSource

__all__ = ["stored_rows"]

FORMAT = 1  # of the files; count up when the same source would be read differently


def stored_rows(card: DataCard, opened: OpenSource, split: str, *, hashed: str | None = None) -> RowFile:
    """Open the rows of a split, good and bad, or read them first.

    Args:
        card: Its columns are read; the source has all of them (`require_columns`).
        opened: The source.
        split: One of its splits.
        hashed: Further column, by whose hash the rows are divided.

    Raises:
        SourceError: There is no room for them.
    """
    dataset = opened.splits[split]
    return row_file(
        _key(card, opened, split, hashed),
        lambda: read_blocks(dataset, card.columns, split=split, hashed=hashed),
        where=f"{opened.where} ({split})",
    )


def _key(card: DataCard, opened: OpenSource, split: str, hashed: str | None) -> str | None:
    """A hash of all that decides what the rows are; None where they lie in no file, or one that is gone."""
    dataset = opened.splits[split]
    files = opened.files.get(split) or [file for group in opened.files.values() for file in group]
    if not files:  # else not: processes that convert a source at the same time replace each other's conversion
        files = [Path(file["filename"]) for file in dataset.cache_files]
    try:
        states = [(str(file.absolute()), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    except OSError:
        return None
    if not states:
        return None
    columns = card.columns
    described = (
        *(FORMAT, unicodedata.unidata_version, split, hashed, len(dataset), repr(dataset.features), states),
        *(columns.captions, columns.id, columns.product_id, columns.attributes, columns.numeric),
        sorted(card.source.options.items()),
    )
    return hashlib.blake2b(repr(described).encode(errors="surrogatepass"), digest_size=16).hexdigest()
