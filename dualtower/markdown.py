"""Tables of Markdown that also read well in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["markdown_table"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: Collection[int] = (0,)) -> str:
    """Write a Markdown table with columns of even width.

    Args:
        header: A title per column.
        rows: A cell per column. Whole numbers get commas between thousands, everything else is taken as text; line
            breaks become spaces and ``|`` is escaped, so that no cell can break the table.
        left: Numbers of the columns that are set left, as text is; the others are set right, as numbers are.
    """
    lines = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        columns = enumerate(zip(cells, widths, strict=True))
        return f"| {' | '.join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in columns)} |"

    rule = ["-" * (width + 2) if i in left else "-" * (width + 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(lines[0]), f"|{'|'.join(rule)}|", *(line(cells) for cells in lines[1:])])


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).splitlines()).replace("|", "\\|")
