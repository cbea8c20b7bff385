"""What a person reads when a command fails, and the exit status that goes with it."""

from __future__ import annotations

from typing import IO, Any

import click


class Failure(click.ClickException):
    """An exception as one message on stderr.

    Exit status 2 for configuration errors, 1 for everything else. An exception of a type that no library function
    raises on purpose is shown with its type and the way to its traceback.
    """

    def __init__(self, error: Exception):
        from wavelet_core.config import ConfigurationError
        from wavelet_core.registry import RegistryError

        super().__init__(_message(error))
        self.exit_code = 2 if isinstance(error, (ConfigurationError, RegistryError)) else 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"wavelet: error: {self.format_message()}", file=file, err=file is None)


def _message(error: Exception) -> str:
    from wavelet_core.checkpoint import CheckpointError

    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (CheckpointError, ValueError, OSError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (`--debug` shows the traceback)".replace("\n", " ")
