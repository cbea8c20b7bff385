"""What a person reads when a command fails, and the exit status that goes with it."""

from __future__ import annotations

import re
from typing import IO, Any

import click

from wavelet_cli.output import error_style

# Characters of a word and of a line, and lines, that are shown of a message: what was given can be a megabyte.
LONGEST_WORD = 300
LONGEST_LINE = 1000
MOST_LINES = 40


class Failure(click.ClickException):
    """A failure as one message on stderr."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        message = error_style(f"wavelet: error: {self.format_message()}")
        click.echo(message, file=file, err=file is None, color=self.show_color)


class ConfigurationFailure(Failure):
    """A failure that the configuration is to blame for."""

    exit_code = 2


def failure(error: BaseException) -> Failure:
    """What to show for an exception.

    One of a type that no library function raises on purpose is shown with its type and the way to its traceback.
    """
    from wavelet_core.atomic_files import WriteError
    from wavelet_core.config import ConfigurationError
    from wavelet_core.registry import RegistryError
    from wavelet_core.tensor_files import CheckpointError

    if isinstance(error, (ConfigurationError, RegistryError)):
        return ConfigurationFailure(readable(str(error)))
    if isinstance(error, OSError) and not isinstance(error, WriteError) and error.strerror:
        # Every file has a name; what has none is a stream that somebody opened for us.
        return Failure(readable(f"{error.filename or 'standard output'}: {error.strerror}"))
    if isinstance(error, (CheckpointError, ValueError, OSError)) and str(error):
        return Failure(readable(str(error)))
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # as torch says it
        return Failure("there is not enough memory for this")
    return Failure(readable(f"{type(error).__name__}: {error} (`--debug` shows the traceback)".replace("\n", " ")))


def readable(message: str) -> str:
    """A message without the middle of what is too long in it."""
    from wavelet_core.messages import shortened

    lines = [
        shortened(re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: shortened(word[0]), line), LONGEST_LINE)
        for line in message.split("\n")
    ]
    more = [f"and {len(lines) - MOST_LINES} lines more"] if len(lines) > MOST_LINES else []
    return "\n".join([*lines[:MOST_LINES], *more])
