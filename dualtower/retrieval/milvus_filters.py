"""Filters in the language of Milvus."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dualtower.retrieval.filters import And, Comparison, Filter, Not, Or

__all__ = ["MISSING_NUMBER", "expression"]

MISSING_NUMBER = -1e308
"""Stands for a number that a row lacks, so that filters know only true and false."""


def expression(part: Filter, columns: Mapping[str, str]) -> str:
    """A filter in Milvus' language, built from the parsed tree: fields by number, values as quoted literals.

    (Milvus binds parameters by name, too, but Milvus Lite cannot.)

    Args:
        part: Parsed filter.
        columns: Attribute -> field of the collection.
    """
    if isinstance(part, And | Or):
        word = " and " if isinstance(part, And) else " or "
        return word.join(f"({expression(inner, columns)})" for inner in part.parts)
    if isinstance(part, Not):
        return f"not ({expression(part.part, columns)})"
    assert isinstance(part, Comparison)
    field, number = columns[part.name], isinstance(part.values[0], float)
    if part.operator == "in":
        return f"{field} in [{', '.join(map(_literal, part.values))}]"
    compared = f"{field} {'==' if part.operator == '=' else part.operator} {_literal(part.values[0])}"
    if number and part.operator in ("!=", "<", "<="):
        return f"({compared} and {field} > {MISSING_NUMBER / 10})"
    return f'({compared} and {field} != "")' if part.operator == "!=" else compared


def _literal(value: str | float) -> str:
    """A number, or a text in double quotes with its quotes and backslashes escaped."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(float(value))
