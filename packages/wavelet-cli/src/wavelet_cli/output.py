"""How values are printed: JSON for programs, sizes for people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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


def print_report(report: Any, as_json: bool, describe: Callable[[Any], str]) -> None:
    """Print a report as JSON, or as the text that `describe` makes of it."""
    if as_json:
        print_json(report)
    else:
        click.echo(describe(report))


def byte_size(size: float) -> str:
    """A number of bytes with a binary unit: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
