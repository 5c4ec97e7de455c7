"""The one writer of Markdown tables."""

from __future__ import annotations

from dualtower.markdown import markdown_table


def test_columns_are_even_and_numbers_stand_right() -> None:
    table = markdown_table(["metric", "rows", "score"], [["recall@10", 44072, 0.352], ["x", 7, "0.1 [0, 1]"]])
    assert table.splitlines() == [
        "| metric    |   rows |      score |",
        "|-----------|-------:|-----------:|",
        "| recall@10 | 44,072 |      0.352 |",
        "| x         |      7 | 0.1 [0, 1] |",
    ]


def test_columns_of_text_stand_left() -> None:
    table = markdown_table(["part", "rows", "what"], [["tower", 1, "bert"], ["head", 12, "linear"]], left=(0, 2))
    assert table.splitlines()[1:3] == ["|-------|-----:|--------|", "| tower |    1 | bert   |"]


def test_no_cell_can_break_the_table() -> None:
    table = markdown_table(["a|b", "c"], [["line\r\nbreak", "x | y"], [None, True]])
    assert table.splitlines() == [
        "| a\\|b       |      c |",
        "|------------|-------:|",
        "| line break | x \\| y |",
        "| None       |   True |",
    ]


def test_a_table_without_rows_has_its_head() -> None:
    assert markdown_table(["a", "b"], []) == "| a   |   b |\n|-----|----:|"
