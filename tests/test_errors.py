"""Messages of errors: short, on one line, with the nearest name where one is near."""

from __future__ import annotations

import pytest

from dualtower.errors import UnknownName, did_you_mean


@pytest.mark.parametrize(
    ("given", "known", "said"),
    [
        ("colr", ["price", "color"], " Did you mean 'color'?"),
        ("colr", {"price": 1, "color": 2}, " Did you mean 'color'?"),
        ("xyz", ["price", "color"], ""),
        ("colr", [], ""),
        (12, ["123", "9"], " Did you mean '123'?"),
        ("a" * 300, ["a" * 299], f" Did you mean {'a' * 116 + ' ...'!r}?"),
    ],
)
def test_did_you_mean(given: object, known: list[str], said: str) -> None:
    assert did_you_mean(given, known) == said


def test_an_unknown_name_says_what_is_known() -> None:
    assert str(UnknownName("tower", "brt", ["lstm", "bert"], "Look again.")) == (
        "no tower 'brt'; known: bert, lstm. Did you mean 'bert'? Look again."
    )
    assert str(UnknownName("tower", "x", [])) == "no tower 'x'; known: (none)."
