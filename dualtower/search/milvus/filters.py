"""Filters in the language of Milvus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dualtower.errors import FilterError
from dualtower.search.filters import And, Filter, Not, Or

__all__ = ["MISSING_NUMBER", "among", "expression", "literal"]

MISSING_NUMBER = -1e308
"""Stands for a number that a row lacks, so that filters know only true and false."""
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def expression(part: Filter, columns: Mapping[str, str]) -> str:
    """A filter in Milvus' language, built from the parsed tree: fields by number, values as quoted literals.

    (Milvus binds parameters by name, too, but Milvus Lite cannot.)

    Args:
        part: Parsed filter.
        columns: Attribute -> field of the collection.

    Raises:
        FilterError: A value is no text that Milvus can hold.
    """
    if isinstance(part, And | Or):
        word = " and " if isinstance(part, And) else " or "
        return word.join(f"({expression(inner, columns)})" for inner in part.parts)
    if isinstance(part, Not):
        # Two cancel each other: of some hundred in a row Milvus' parser runs out of stack.
        return expression(part.part.part, columns) if isinstance(part.part, Not) else _negated(part, columns)
    field, number = columns[part.name], isinstance(part.values[0], float)
    if part.operator == "in":
        return f"{field} in [{', '.join(map(literal, part.values))}]"
    compared = f"{field} {'==' if part.operator == '=' else part.operator} {literal(part.values[0])}"
    if number and part.operator in ("!=", "<", "<="):
        return f"({compared} and {field} > {MISSING_NUMBER / 10})"
    return f'({compared} and {field} != "")' if part.operator == "!=" else compared


def among(field: str, texts: Iterable[str]) -> str:
    """Rows whose field is one of some texts. (pymilvus itself puts ids between quotes as they are, quotes and all.)"""
    return f"{field} in [{', '.join(map(literal, texts))}]"


def literal(value: str | float) -> str:
    """A number, or a text in double quotes.

    Quotes, backslashes and ends of lines are escaped; any other character stands for itself, since Milvus and Milvus
    Lite agree on no escape for it.

    Raises:
        FilterError: Half a character (a lone surrogate), which no store can hold.
    """
    if not isinstance(value, str):
        return repr(float(value))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FilterError(f"the text {value[:40]!r} holds half a character, which is in no row") from None
    return f'"{value.translate(_ESCAPES)}"'


def _negated(part: Not, columns: Mapping[str, str]) -> str:
    return f"not ({expression(part.part, columns)})"
