"""Tables of text for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER_OR_GAP = re.compile(r"(-?[\d,]+(\.\d+)?)?")


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Left-aligned columns, two spaces apart; columns of numbers (and gaps) are aligned right."""
    cells = text_cells(rows)
    lines = [list(header), *cells] if header else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = number_columns(cells) or [False] * len(header)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def text_cells(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    """What a table shows: whole numbers with their thousands apart, anything else as it is."""
    return [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]


def number_columns(cells: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold nothing but numbers and gaps."""
    return [all(NUMBER_OR_GAP.fullmatch(cell) for cell in column) for column in zip(*cells, strict=True)]
