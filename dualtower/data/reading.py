"""Columns of a `datasets.Dataset` as Python values, by what the dataset says that they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["column_paths", "column_values", "has_column", "outer_column", "undecoded_column"]


def column_values(dataset: Any, name: str) -> list[Any]:
    """The decoded values of column ``name``; ``a.b`` is field b of a column of records a.

    Classes (`datasets` ClassLabel) come as their names.
    """
    import datasets

    outer, fields = _outer_column(dataset, name)
    dtype = dataset.features[outer]
    if not fields and isinstance(dtype, datasets.ClassLabel):
        return [None if value is None or value < 0 else dtype.int2str(value) for value in dataset[outer]]
    if isinstance(dtype, datasets.Value):
        return undecoded_column(dataset, outer).to_pylist()  # what is stored is the value, and this is quicker
    values = list(dataset.select_columns([outer])[outer])
    for field in fields:
        values = [value.get(field) if isinstance(value, Mapping) else None for value in values]
    return values


def undecoded_column(dataset: Any, name: str) -> Any:
    """The Arrow column of features that are stored as they are: plain values, bytes, paths, undecoded `datasets` Image.

    Whoever wants values takes `column_values`, since other features, such as Json, are stored in a form of their own.
    """
    import pyarrow.compute as pc

    outer, fields = _outer_column(dataset, name)
    dataset = dataset.select_columns([outer])
    column = (dataset if dataset._indices is None else dataset.flatten_indices()).data.column(outer)
    return pc.struct_field(column, fields) if fields else column


def outer_column(dataset: Any, name: str) -> str:
    """The column of the dataset in which column `name` lies, which may be a field of it."""
    return _outer_column(dataset, name)[0]


def column_paths(features: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All columns, and the fields of columns of records as ``a.b``."""
    paths: list[str] = []
    for name, dtype in features.items():
        paths.append(f"{prefix}{name}")
        if isinstance(dtype, Mapping):
            paths += column_paths(dtype, f"{prefix}{name}.")
    return paths


def has_column(dataset: Any, name: str) -> bool:
    """Whether there is such a column, or may be such a field in a column of JSON."""
    outer, _ = _outer_column(dataset, name)
    return name in column_paths(dataset.features) or type(dataset.features.get(outer)).__name__ == "Json"


def _outer_column(dataset: Any, name: str) -> tuple[str, list[str]]:
    """The column, and the fields inside it."""
    if name in dataset.column_names:
        return name, []
    outer, _, path = name.partition(".")
    return outer, path.split(".")
