"""Frozen dataclasses to plain dicts and back, strictly.

Configs are saved beside what they produced (runs, models, checkpoints, data cards). Reading them back
must never drop a key in silence, so an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import dacite

from dualtower.errors import ConfigError, UnknownKey

__all__ = ["OMIT_DEFAULT", "differences", "from_dict", "to_dict", "to_json"]

C = TypeVar("C")

OMIT_DEFAULT = {"omit_default": True}
"""Metadata of a field that joined a saved config later: `to_dict` leaves it out while it holds its default, so that
what was saved before keeps its fingerprint."""


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a (nested) dataclass into values that JSON and YAML can hold: tuples become lists, paths strings."""
    plain = _plain(config, whole=False)
    assert isinstance(plain, dict)
    return plain


def to_json(values: Any, *, indent: int | None = None) -> str:
    """Values as JSON that every reader takes: NaN and the infinities, which JSON cannot say, become null."""
    return json.dumps(_finite(values), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any, *, whole: bool = True) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: _plain(v, whole=whole) for f, v in named if whole or not _is_omitted(f, v)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, whole=whole) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, whole=whole) for v in value]
    return str(value) if isinstance(value, Path) else value


def _is_omitted(field: dataclasses.Field[Any], value: Any) -> bool:
    return bool(field.metadata.get("omit_default")) and value == field.default


def from_dict(cls: type[C], values: Mapping[str, Any], *, where: str = "config") -> C:
    """Build dataclass `cls` from a mapping; missing keys keep their defaults.

    Args:
        cls: A dataclass whose fields may be dataclasses, tuples, optionals, literals or paths.
        values: Usually read from JSON or YAML.
        where: What the mapping is, for messages.

    Raises:
        UnknownKey: A key is no field of `cls` (or of the nested dataclass that it stands in).
        ConfigError: A value has the wrong type, or a field without default is missing.
    """
    _refuse_unknown(cls, values, where)
    settings = dacite.Config(cast=[tuple, Path], type_hooks={float: _whole_is_float})
    try:
        return dacite.from_dict(cls, values, settings)
    except dacite.DaciteError as error:
        raise ConfigError(f"{where}: {error}") from error


def _whole_is_float(value: Any) -> Any:
    """JSON and YAML write 1 for 1.0."""
    return float(value) if type(value) is int else value


def _refuse_unknown(cls: Any, values: Any, where: str) -> None:
    """Walk the mapping beside the dataclass, so that a nested unknown key is named with its whole path."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys to values, not {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise UnknownKey(f"key in {where}", key, hints)
        for inner in _dataclasses_in(hints[key]):
            if isinstance(value, Mapping):
                _refuse_unknown(inner, value, f"{where}.{key}")


def _dataclasses_in(hint: Any) -> list[Any]:
    """The dataclass that a field holds: itself, or inside Optional. (Containers check their own members.)"""
    candidates = [hint, *typing.get_args(hint)] if typing.get_origin(hint) is not tuple else [hint]
    return [c for c in candidates if dataclasses.is_dataclass(c)]


def differences(a: Any, b: Any) -> list[str]:
    """List the leaves in which two configs (dataclasses or mappings) differ, as ``path: a != b`` lines."""
    flat_a, flat_b = dict(_flatten(_plain(a))), dict(_flatten(_plain(b)))
    keys = sorted(flat_a.keys() | flat_b.keys())
    return [f"{k}: {flat_a.get(k)!r} != {flat_b.get(k)!r}" for k in keys if flat_a.get(k) != flat_b.get(k)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        leaves += _flatten(value, f"{path}.") if isinstance(value, Mapping) else [(path, value)]
    return leaves
