"""Arrow types for JSON values: one that every value of a column fits into without a change of its meaning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from typing import Any

import pyarrow as pa

__all__ = ["as_type", "column_array", "column_type", "common_type", "plain_text", "type_of"]

SCALARS = {type(None): pa.null(), bool: pa.bool_(), float: pa.float64(), str: pa.string()}


def type_of(value: Any) -> pa.DataType:
    """The Arrow type of one value, as `json.loads` returns it."""
    if isinstance(value, dict):
        return pa.struct([(name, type_of(member)) for name, member in value.items()])
    if isinstance(value, list):
        return pa.list_(reduce(common_type, map(type_of, value), pa.null()))
    if type(value) is int:
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    return SCALARS[type(value)]


def column_type(values: Sequence[Any]) -> pa.DataType:
    """The type that all values of a column fit into."""
    dtypes = set(map(type, values))
    found = {SCALARS[dtype] for dtype in dtypes & SCALARS.keys()}
    if dtypes - SCALARS.keys():  # only these need a look at each value
        found |= {type_of(value) for value in values if type(value) not in SCALARS}
    return reduce(common_type, found, pa.null())


def column_array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """A column of this type, which `column_type` found."""
    plain = {type(None), *(python for python, arrow in SCALARS.items() if arrow == dtype)}
    if set(map(type, values)) <= plain:
        return pa.array(values, dtype)
    return pa.array([as_type(value, dtype) for value in values], dtype)


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type for values of both: fields of both records, a list where one of them is a list, else text."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        fields = {field.name: field.type for field in a}
        for field in b:
            fields[field.name] = common_type(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    if pa.types.is_list(a) or pa.types.is_list(b):
        return pa.list_(common_type(*(dtype.value_type if pa.types.is_list(dtype) else dtype for dtype in (a, b))))
    return pa.string()


def as_type(value: Any, dtype: pa.DataType) -> Any:
    """The value as a column of this type holds it."""
    if value is None:
        return None
    if pa.types.is_string(dtype):
        return plain_text(value)
    if pa.types.is_list(dtype):
        return [as_type(member, dtype.value_type) for member in (value if isinstance(value, list) else [value])]
    if pa.types.is_struct(dtype):
        return {field.name: as_type(value.get(field.name), field.type) for field in dtype}
    return float(value) if pa.types.is_floating(dtype) else value


def plain_text(value: Any) -> str:
    """A JSON value as a text without quotes: 7 is "7", not "7.0", and true is "true"."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
