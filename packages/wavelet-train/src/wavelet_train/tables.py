"""Tables of text for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER_OR_GAP = re.compile(r"(-?[\d,]+(\.\d+)?)?")


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Left-aligned columns, two spaces apart; columns of numbers (and gaps) are aligned right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    lines = [list(header), *cells] if header else cells
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(NUMBER_OR_GAP.fullmatch(cell) for cell in column[bool(header) :]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
