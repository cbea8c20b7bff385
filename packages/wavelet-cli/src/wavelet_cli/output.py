"""How results are printed: as JSON for programs, as text for people, in colours where a terminal has them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import click

from wavelet_train.json_values import json_value

# For click's contexts: where standard output and error are no terminals, click leaves styles out by itself.
COLORS = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def error_style(message: str) -> str:
    """What went wrong, in red."""
    return click.style(message, fg="red")


def warning_style(message: str) -> str:
    """What may go wrong, in yellow."""
    return click.style(message, fg="yellow")


def prompt_style(text: str) -> str:
    """What a model continues, told from what it wrote."""
    return click.style(text, fg="cyan") if text else ""


def titled(text: str) -> str:
    """A table or paragraph whose first line is its title, in bold."""
    title, newline, rest = text.partition("\n")
    return click.style(title, bold=True) + newline + rest


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout. Numbers that JSON does not have (infinity, not a number) become null."""
    click.echo(json.dumps(json_value(value), indent=2))


def print_report(report: Any, as_json: bool, describe: Callable[[Any], str]) -> None:
    """Print a report as JSON, or as the text that `describe` makes of it."""
    if as_json:
        print_json(report)
    else:
        click.echo(describe(report))
