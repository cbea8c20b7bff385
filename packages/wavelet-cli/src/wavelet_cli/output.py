"""How results are printed: as JSON for programs, as text for people, in colours where a terminal has them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from wavelet_train.json_values import json_value

# For click's contexts: where standard output and error are no terminals, click leaves styles out by itself.
COLORS = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None

# Where a click context has the arguments that `wavelet` was called with.
ARGUMENTS = "wavelet_cli.arguments"


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


def save_measurement(path: Path | None, report: Any, describe: Callable[[Any], str], code: Sequence[str]) -> None:
    """Write a report with its command, machine, date and revision to a file, where one is named.

    code: patterns of the files that the figures depend on.
    """
    if path is None:
        return
    from wavelet_train.measurement import measurement

    arguments = click.get_current_context().meta[ARGUMENTS]
    command = shlex.join(["wavelet", *_without_output(arguments)])
    measurement(command, report, click.unstyle(describe(report)), code).write(path)


def _without_output(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--output" and not argument.startswith("--output="):
            kept.append(argument)
        skip = argument == "--output"
    return kept
