"""Configs go to plain dicts and come back; what does not fit is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dualtower.config import differences, from_dict, to_dict
from dualtower.errors import ConfigError, UnknownKey


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    rate: float = 0.1
    path: Path | None = None
    decay: float | None = None
    inner: Inner = field(default_factory=Inner)


def test_round_trip_keeps_types() -> None:
    config = Outer(rate=2.0, path=Path("a/b"), decay=1.5, inner=Inner(sizes=(3,), kind="b"))
    plain = to_dict(config)
    assert plain == {"rate": 2.0, "path": "a/b", "decay": 1.5, "inner": {"sizes": [3], "kind": "b"}}
    assert from_dict(Outer, plain) == config


def test_whole_number_is_a_float_where_a_float_is_meant() -> None:
    config = from_dict(Outer, {"rate": 1, "decay": 2})
    assert (config.rate, config.decay) == (1.0, 2.0) and isinstance(config.decay, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 1}, "no key in config 'rat'; known: decay, inner, path, rate. Did you mean 'rate'?"),
        ({"inner": {"size": [1]}}, "no key in config.inner 'size'.*Did you mean 'sizes'"),
    ],
)
def test_unknown_key_names_the_nearest(values: dict, message: str) -> None:
    with pytest.raises(UnknownKey, match=message):
        from_dict(Outer, values)


@pytest.mark.parametrize("values", [{"rate": "fast"}, {"inner": {"kind": "c"}}, {"inner": 3}, "text"])
def test_wrong_type_is_an_error(values: object) -> None:
    with pytest.raises(ConfigError):
        from_dict(Outer, values)  # type: ignore[arg-type]


def test_differences_name_the_path() -> None:
    assert differences(Outer(), Outer(inner=Inner(kind="b"))) == ["inner.kind: 'a' != 'b'"]
    assert differences(Outer(), Outer()) == []
