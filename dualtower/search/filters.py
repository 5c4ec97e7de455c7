"""Filters over a catalog's attributes: a small language, parsed into a tree and never pasted into anything.

::

    articleType = 'Dresses' and price < 50
    baseColour in ('Red', 'Maroon') and not (usage = 'Sports' or price >= 100)

Attributes whose names are no plain words stand in backticks: ``` `base color` = 'Red' ```. Text is compared for
equality only, upper and lower case counted; numbers also by order. A row that lacks an attribute satisfies no
comparison with it, and so every ``not`` of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import lark

from dualtower.errors import FilterError, did_you_mean

__all__ = ["And", "AttributeType", "Comparison", "Filter", "Not", "Operator", "Or", "matches", "parse_filter"]

AttributeType = Literal["text", "number"]
Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in"]
LONGEST = 4000  # characters of a filter
DEEPEST = 40  # nested brackets
MAX_NOTS = 400

GRAMMAR = r"""
?start: either
?either: both (_OR both)*
?both: opposite (_AND opposite)*
?opposite: _NOT opposite -> negated | "(" either ")" | comparison
comparison: name OPERATOR value
    | name _IN "(" value ("," value)* ")" -> among
    | name _NOT _IN "(" value ("," value)* ")" -> outside
name: WORD | TICKED
value: STRING | NUMBER
_OR: /or\b/i
_AND: /and\b/i
_NOT: /not\b/i
_IN: /in\b/i
OPERATOR: "!=" | "<=" | ">=" | "=" | "<" | ">"
WORD: /(?!(?:and|or|not|in)\b)[^\W\d][\w.]*/i
TICKED: /`[^`]+`/
STRING: /'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"/
NUMBER: /[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?/
%ignore /\s+/
"""

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]+`""", re.DOTALL)
_NOT = re.compile(r"\bnot\b", re.IGNORECASE)


@dataclass(frozen=True)
class Comparison:
    """One attribute against one value, or against several with ``in``."""

    name: str
    operator: Operator
    values: tuple[str | float, ...]


@dataclass(frozen=True)
class Not:
    """What `part` does not satisfy."""

    part: Filter


@dataclass(frozen=True)
class And:
    """What satisfies all parts."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """What satisfies at least one part."""

    parts: tuple[Filter, ...]


Filter = Comparison | Not | And | Or


def parse_filter(text: str, attributes: Mapping[str, AttributeType]) -> Filter:
    """Read a filter.

    Args:
        text: See the module.
        attributes: Attribute -> its kind.

    Raises:
        FilterError: The text cannot be read (names the place), an attribute is unknown (lists the known ones), or a
            value does not fit its attribute.
    """
    if len(text) > LONGEST:
        raise FilterError(f"the filter has {len(text):,} characters; at most {LONGEST:,} are read")
    _check_depth(_QUOTED.sub("", text))
    try:
        tree = _parser().parse(text)
    except lark.exceptions.UnexpectedInput as error:
        if getattr(getattr(error, "token", None), "type", "") == "$END":
            raise FilterError(
                f"the filter ends too early: {text[-60:]!r}; e.g. color = 'Red' and price < 50"
            ) from error
        place = max(0, error.pos_in_stream or 0)
        raise FilterError(
            f"the filter cannot be read at {text[place : place + 20]!r} (character {place + 1}); "
            "e.g. color = 'Red' and (price < 50 or brand in ('Nike', 'Puma'))"
        ) from error
    built = _build(tree)
    for comparison in _comparisons(built):
        _check(comparison, attributes)
    return built


def matches(part: Filter, row: Mapping[str, Any]) -> bool:
    """Whether one row, attribute -> value, satisfies a filter: the plain meaning that fast paths are tested against."""
    if isinstance(part, And):
        return all(matches(p, row) for p in part.parts)
    if isinstance(part, Or):
        return any(matches(p, row) for p in part.parts)
    if isinstance(part, Not):
        return not matches(part.part, row)
    value = row.get(part.name)
    if value is None or value == "" or value != value:
        return False
    given = float(value) if isinstance(part.values[0], float) else str(value)
    first: Any = part.values[0]
    return {
        "=": lambda: given == first,
        "!=": lambda: given != first,
        "<": lambda: given < first,
        "<=": lambda: given <= first,
        ">": lambda: given > first,
        ">=": lambda: given >= first,
        "in": lambda: given in part.values,
    }[part.operator]()


def _check_depth(text: str) -> None:
    """Refuse what would exhaust the stack; in the text no names and strings in quotes are left."""
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise FilterError(f"the filter nests {deepest} brackets deep; at most {DEEPEST} are read")
    if (nots := len(_NOT.findall(text))) > MAX_NOTS:
        raise FilterError(f"the filter says `not` {nots} times; at most {MAX_NOTS} are read")


@cache
def _parser() -> Any:
    return lark.Lark(GRAMMAR, parser="lalr", propagate_positions=False)


def _build(tree: Any) -> Filter:
    kind, parts = str(tree.data), tree.children
    if kind in ("either", "both"):
        combined = tuple(_build(part) for part in parts)
        return Or(combined) if kind == "either" else And(combined)
    if kind == "negated":
        return Not(_build(parts[0]))
    name = str(parts[0].children[0]).strip("`")
    if kind == "comparison":
        return Comparison(name, str(parts[1]), (_value(parts[2]),))  # type: ignore[arg-type]
    among = Comparison(name, "in", tuple(_value(part) for part in parts[1:]))
    return among if kind == "among" else Not(among)


def _value(tree: Any) -> str | float:
    token = tree.children[0]
    if token.type == "NUMBER":
        if not math.isfinite(number := float(token)):
            raise FilterError(f"{str(token)[:40]} is beyond all numbers that a catalog holds")
        return number
    inner = str(token)[1:-1]
    return "".join(_unescaped(inner))


def _unescaped(text: str) -> Iterator[str]:
    characters = iter(text)
    for character in characters:
        yield next(characters) if character == "\\" else character


def _comparisons(part: Filter) -> Iterator[Comparison]:
    if isinstance(part, Comparison):
        yield part
    elif isinstance(part, Not):
        yield from _comparisons(part.part)
    else:
        for inner in part.parts:
            yield from _comparisons(inner)


def _check(comparison: Comparison, attributes: Mapping[str, AttributeType]) -> None:
    name = comparison.name
    if name not in attributes:
        known = ", ".join(sorted(attributes)) or "(none)"
        raise FilterError(f"no attribute {name!r}; known: {known}.{did_you_mean(name, attributes)}")
    wanted = float if attributes[name] == "number" else str
    for value in comparison.values:
        if not isinstance(value, wanted):
            example = f"{name} < 50" if wanted is float else f"{name} = 'Red'"
            raise FilterError(f"attribute {name!r} is a {attributes[name]}, {value!r} is not; e.g. {example}")
    if wanted is str and comparison.operator in ("<", "<=", ">", ">="):
        raise FilterError(f"attribute {name!r} is text, which has no order; use =, != or in")
