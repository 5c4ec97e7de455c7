"""Numbers that are none, such as NaN, come in by no door; and what is printed as JSON is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogs import card, own_cache  # noqa: F401

from dualtower.config import to_json
from dualtower.data.loading import load_items
from dualtower.data.values import value_problem
from dualtower.errors import RowError

CARD = card(image=None, id="id", product_id=None, attributes=["price", "color"])
VALUES = ("1.5", "nan", "2", "inf", "", "-Infinity", "7")


def in_csv(file: Path) -> None:
    lines = [f"{i},mug {i},{value},red" for i, value in enumerate(VALUES)]
    file.write_text("\n".join(["id,title,price,color", *lines]) + "\n")


def in_json(file: Path) -> None:
    values = ("1.5", "NaN", "2", "1e999", "null", "-Infinity", "7")
    rows = [f'{{"id": "{i}", "title": "mug {i}", "price": {v}, "color": "red"}}\n' for i, v in enumerate(values)]
    file.write_text("".join(rows))


def in_parquet(file: Path) -> None:
    price = pa.array([float(value) if value else None for value in VALUES])
    ids = [str(i) for i in range(len(VALUES))]
    table = {"id": ids, "title": [f"mug {i}" for i in ids], "price": price, "color": ["red"] * len(ids)}
    pq.write_table(pa.table(table), file)


WAYS = {"rows.csv": in_csv, "rows.jsonl": in_json, "rows.parquet": in_parquet}


@pytest.mark.parametrize("name", WAYS)
def test_they_are_refused_by_row_and_column(tmp_path: Path, name: str) -> None:
    WAYS[name](tmp_path / name)
    with pytest.raises(RowError, match=r"row 1 \(id 1\): column 'price' is nan; give a finite number"):
        load_items(CARD, "all", source=tmp_path / name)
    items = load_items(CARD, "all", source=tmp_path / name, on_error="skip")
    assert items.ids == ["0", "2", "4", "6"] and items.attributes["price"] == [1.5, 2.0, None, 7.0]
    assert [error.reason.split(";")[0] for error in items.skipped] == [
        "column 'price' is nan",
        "column 'price' is inf",
        "column 'price' is -inf",
    ]


def test_what_the_card_calls_a_number_is_one(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,title,price,color\n1,mug,cheap,red\n2,mug,1e999,red\n3,mug,5,red\n")
    assert load_items(CARD, "all", source=tmp_path).attributes["price"] == ["cheap", "1e999", "5"]  # texts, then
    priced = replace(CARD, columns=replace(CARD.columns, numeric=["price"]))
    with pytest.raises(RowError, match=r"row 0 \(id 1\): column 'price' is 'cheap', which is no number"):
        load_items(priced, "all", source=tmp_path)
    items = load_items(priced, "all", source=tmp_path, on_error="skip")
    assert items.ids == ["3"] and "is 1e999; give a finite number" in items.skipped[1].reason


def test_words_are_no_numbers(tmp_path: Path) -> None:
    """A color may be called "Inf", and a column of such words alone is one of texts."""
    (tmp_path / "rows.csv").write_text("id,title,price,color\n1,mug,1,Inf\n2,mug,2,red\n3,nan,3,nan\n")
    items = load_items(CARD, "all", source=tmp_path)
    assert items.attributes["color"] == ["Inf", "red", "nan"] and items.texts[2] == ("nan",)


@pytest.mark.parametrize(
    ("value", "number", "problem"),
    [
        (None, True, ""),
        ("", True, ""),
        (3, True, ""),
        ("3.5", True, ""),
        ("nan", False, ""),
        ("nan", True, "is nan"),
        (float("inf"), False, "is inf"),
        (10**400, False, "is 1000"),
        (10**400, True, "is 1000"),
        ("cheap", True, "is 'cheap', which is no number"),
        ([1], True, "which is no number"),
    ],
)
def test_values(value: Any, number: bool, problem: str) -> None:
    found = value_problem(value, number=number)
    assert problem in found and bool(found) == bool(problem)


def strictly(text: str) -> Any:
    """What a JSON reader outside Python makes of it."""
    refuse: Callable[[str], Any] = pytest.fail
    return json.loads(text, parse_constant=refuse)


def test_json_is_json() -> None:
    assert strictly(to_json({"a": [float("nan"), (1.0, float("-inf"))], "ü": {"b": "NaN", "c": True}}, indent=2)) == {
        "a": [None, [1.0, None]],
        "ü": {"b": "NaN", "c": True},
    }
