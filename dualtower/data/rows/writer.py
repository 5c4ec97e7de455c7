"""From blocks of rows to the file that holds them, each attribute in a column of its own type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from dualtower.data.rows.blocks import Block
from dualtower.data.rows.file import HASHED, METADATA, PROBLEM, code_column
from dualtower.data.rows.table import ID, PRODUCT_ID, TEXTS, attribute, codes_of

__all__ = ["write_rows"]

TEXT = pa.large_string()
TYPES = {"none": TEXT, "text": TEXT, "json": TEXT, "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
KINDS = {str: "text", int: "int", float: "float", bool: "bool"}


def write_rows(path: Path, read: Callable[[], Iterator[Block]]) -> None:
    """Write the file that `RowFile` reads.

    Args:
        path: The new file.
        read: Reads the rows of the source from the beginning, in blocks; at least one.

    Raises:
        OSError: The file system refused, or the source.
        UnicodeEncodeError: A text is no Unicode.
    """
    kinds: dict[str, str] = {}
    try:
        _write(path, read(), kinds)
    except _Contradicted:  # once at most: the kinds of all blocks are known now
        _write(path, read(), kinds)


class _Contradicted(Exception):
    """A later block has values of another kind than the schema, which is known only now."""


def _write(path: Path, blocks: Iterator[Block], kinds: dict[str, str]) -> None:
    first, known = next(blocks), bool(kinds)
    if not known:
        _widen(kinds, first)
    schema = _schema(first, kinds)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for block in chain([first], blocks):
            if not known and _widen(kinds, block):
                for later in blocks:
                    _widen(kinds, later)
                raise _Contradicted
            writer.write_batch(_batch(block, schema, kinds))


def _schema(block: Block, kinds: Mapping[str, str]) -> pa.Schema:
    fields = [(ID, TEXT), (PRODUCT_ID, TEXT), (TEXTS, pa.list_(TEXT))]
    fields += [(attribute(name), TYPES[kind]) for name, kind in kinds.items()]
    fields += [(code_column(ID), pa.int64()), (code_column(PRODUCT_ID), pa.int64()), (PROBLEM, TEXT)]
    fields += [(code_column(HASHED), pa.int64())] if block.hashed is not None else []
    metadata = {"attributes": [*kinds], "json": [attribute(name) for name, kind in kinds.items() if kind == "json"]}
    return pa.schema(fields, metadata={METADATA: json.dumps(metadata)})


def _batch(block: Block, schema: pa.Schema, kinds: Mapping[str, str]) -> pa.RecordBatch:
    codes = codes_of(block.ids)
    columns: dict[str, Any] = {ID: block.ids, PRODUCT_ID: block.product_ids, TEXTS: block.texts}
    columns[PROBLEM] = block.problems
    for name, values in block.attributes.items():
        columns[attribute(name)] = list(map(_as_json, values)) if kinds[name] == "json" else values
    columns[code_column(ID)] = codes
    columns[code_column(PRODUCT_ID)] = codes if block.product_ids is block.ids else codes_of(block.product_ids)
    if block.hashed is not None:
        columns[code_column(HASHED)] = codes_of(block.hashed)
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _widen(kinds: dict[str, str], block: Block) -> bool:
    """Let the kinds hold the values of this block as well; whether a schema made before no longer does."""
    before = _stored(kinds)
    for name, values in block.attributes.items():
        kind, had = _kind(values), kinds.get(name, "none")
        kinds[name] = kind if had == "none" else had if kind in ("none", had) else "json"
    return _stored(kinds) != before


def _stored(kinds: Mapping[str, str]) -> list[str]:
    return ["text" if kind == "none" else kind for kind in kinds.values()]


def _kind(values: Sequence[Any]) -> str:
    """What holds each of these values as it is: a column of one type, or JSON."""
    types = set(map(type, values)) - {type(None)}
    if not types:
        return "none"
    kind = KINDS.get(types.pop(), "json")
    if types:
        return "json"
    if kind == "int" and not all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return "json"
    return "json" if kind == "text" and not all(map(_is_unicode, filter(None, values))) else kind


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 holds it: JSON may say half a character, a lone surrogate."""
    return text.isascii() or text.encode(errors="ignore").decode() == text


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str)
