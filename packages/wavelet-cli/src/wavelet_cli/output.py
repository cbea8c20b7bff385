"""How results are printed: as JSON for programs, as text for people."""

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
