"""Drawn rows, kept for every process and every later run: drawing them takes seconds of each.

They lie in ``~/.cache/dualtower/drawn`` (or under ``XDG_CACHE_HOME``), named by a hash of what was asked for, of the
code that draws, and of the versions of the packages that it draws with.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from dualtower.data.rows.cache import cache_folder
from dualtower.errors import system_message
from dualtower.files import atomic_write
from dualtower.types import Item

__all__ = ["kept_rows"]

logger = logging.getLogger(__name__)


def kept_rows(asked: dict[str, Any], draw: Callable[[], Iterable[Item]]) -> list[Item]:
    """The rows that were drawn before for the same arguments, or those of `draw`, which are kept where that can be.

    Args:
        asked: All arguments of the drawing, as plain values.
        draw: Draws the rows; their attributes are strings.
    """
    path = cache_folder() / "drawn" / f"{_key(asked)}.parquet"
    if (rows := _read(path)) is not None:
        return rows
    rows = list(draw())
    try:
        with atomic_write(path) as partial:
            pq.write_table(_table(rows), partial, write_page_checksum=True)
    except OSError as error:
        logger.debug("drawn rows are not kept: %s", system_message(error))
    return rows


def _key(asked: dict[str, Any]) -> str:
    versions = [PIL.__version__, np.__version__, _code()]
    return hashlib.blake2b(json.dumps([asked, versions], sort_keys=True).encode(), digest_size=16).hexdigest()


@cache
def _code() -> str:
    """A hash of the code that draws."""
    state = hashlib.blake2b()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        state.update(file.read_bytes())
    return state.hexdigest()


def _table(rows: list[Item]) -> pa.Table:
    return pa.table(
        {
            "id": [row.id for row in rows],
            "product_id": [row.product_id for row in rows],
            "texts": [list(row.texts) for row in rows],
            "image": pa.array([row.image for row in rows], pa.binary()),
            "attributes": [json.dumps(dict(row.attributes)) for row in rows],
        }
    )


def _read(path: Path) -> list[Item] | None:
    """Rows of a file; None where it is not there, or damaged."""
    try:
        columns = pq.read_table(path, page_checksum_verification=True).to_pydict()
        return [
            Item(row_id, product_id, tuple(texts), image, json.loads(attributes))
            for row_id, product_id, texts, image, attributes in zip(
                *(columns[name] for name in ("id", "product_id", "texts", "image", "attributes")), strict=True
            )
        ]
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        logger.debug("%s: %s", path, error)
        return None
