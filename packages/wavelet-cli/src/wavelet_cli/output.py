"""How results are printed: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout. Numbers that JSON does not have (infinity, not a number) become null."""
    click.echo(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Left-aligned columns, two spaces apart; columns of numbers (and gaps) are aligned right."""
    texts = [[_text(cell) for cell in row] for row in rows]
    lines = [list(header), *texts] if header else texts
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))] if lines else []
    right = [all(row[column] == "" or isinstance(row[column], int) for row in rows) for column in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _text(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def byte_size(size: float) -> str:
    """A number of bytes with a binary unit: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
