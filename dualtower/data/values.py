"""What a value of an attribute may be: one rule for tables, requests and catalogs."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["value_problem"]


def value_problem(value: Any, *, number: bool = False) -> str:
    """What is wrong with a value of an attribute; empty where nothing is.

    A value that is missing is None or an empty text. NaN and the infinities are refused: no JSON can say them, and no
    order and no comparison holds for them.

    Args:
        value: As it was given.
        number: Whether it must be a number, or the text of one.
    """
    if value is None or value == "":
        return ""
    try:
        given = float(value) if number else value
        finite = not isinstance(given, int | float) or math.isfinite(given)
    except OverflowError:  # an integer beyond all floats
        finite = False
    except (TypeError, ValueError):
        return f"is {str(value)[:40]!r}, which is no number"
    return "" if finite else f"is {str(value)[:40]}; give a finite number, or leave it empty"
