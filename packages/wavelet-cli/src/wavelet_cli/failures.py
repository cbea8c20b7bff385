"""What a person reads when a command fails, and the exit status that goes with it."""

from __future__ import annotations

from typing import IO, Any

import click

from wavelet_cli.output import error_style


class Failure(click.ClickException):
    """A failure as one message on stderr."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        message = error_style(f"wavelet: error: {self.format_message()}")
        click.echo(message, file=file, err=file is None, color=self.show_color)


class ConfigurationFailure(Failure):
    """A failure that the configuration is to blame for."""

    exit_code = 2


def failure(error: Exception) -> Failure:
    """What to show for an exception.

    One of a type that no library function raises on purpose is shown with its type and the way to its traceback.
    """
    from wavelet_core.config import ConfigurationError
    from wavelet_core.registry import RegistryError
    from wavelet_core.tensor_files import CheckpointError

    if isinstance(error, (ConfigurationError, RegistryError)):
        return ConfigurationFailure(str(error))
    if isinstance(error, OSError) and error.strerror and error.filename:
        return Failure(f"{error.filename}: {error.strerror}")
    if isinstance(error, (CheckpointError, ValueError, OSError)) and str(error):
        return Failure(str(error))
    return Failure(f"{type(error).__name__}: {error} (`--debug` shows the traceback)".replace("\n", " "))
