"""The `wavelet` command: its options, its exit statuses, and where its commands come from."""

from __future__ import annotations

import importlib
import pkgutil
import platform
import sys
import traceback
from importlib.metadata import entry_points, version
from typing import Any

import click

from wavelet_cli import PACKAGES, PLUGINS, commands
from wavelet_cli.failures import failure, readable
from wavelet_cli.output import ARGUMENTS, COLORS, error_style, warning_style
from wavelet_cli.processor_threads import wait_briefly
from wavelet_cli.signals import leave, report

DEBUG = "wavelet_cli.debug"


class WaveletGroup(click.Group):
    """The group of all commands: those of `wavelet_cli.commands`, and those that plugins register."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.plugin_commands: dict[str, list[str]] = {}
        self._asked_plugins = False
        _accept_debug(self)
        for module in pkgutil.iter_modules(commands.__path__):
            self.add_command(importlib.import_module(f"{commands.__name__}.{module.name}").command)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command. Raises ValueError when another one has the name already."""
        name = name or cmd.name or ""
        if name in self.commands:
            raise ValueError(f"the command `wavelet {name}` exists already; choose another name")
        _accept_debug(cmd)
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._ask_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._ask_plugins()
        return super().get_command(ctx, cmd_name)

    def _ask_plugins(self) -> None:
        """Call `register_commands` of every plugin, once; a broken plugin is reported and stops nothing.

        Our own packages bring no commands, so without any other plugin nothing has to be imported for this.
        """
        if self._asked_plugins:
            return
        self._asked_plugins = True
        installed = entry_points(group="wavelet")
        ours = PACKAGES + PLUGINS
        if all(entry_point.dist is not None and entry_point.dist.name in ours for entry_point in installed):
            return
        from wavelet_core.registry import registry

        for plugin in registry.plugins:
            known = set(self.commands)
            registry.manager.call("register_commands", plugin, cli=self)
            self.plugin_commands[plugin.name] = sorted(set(self.commands) - known)
            if plugin.error:
                message = (
                    f"wavelet: warning: plugin {plugin.name!r} of {plugin} does not work: {plugin.reason} "
                    "(see `wavelet plugins`)"
                )
                click.echo(warning_style(message), err=True)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.ClickException as error:
            error.message = readable(error.message)  # type: ignore[misc]
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises becomes one message and an exit status."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = readable(error.message)  # type: ignore[misc]
            message = error_style(error.format_message())
            error.format_message = lambda: message  # type: ignore[method-assign]
            raise
        except (click.Abort, click.exceptions.Exit, BrokenPipeError, SystemExit):
            raise
        except KeyboardInterrupt as interrupt:
            ctx.exit(report(interrupt))
        except BaseException as error:  # the panics of libraries in Rust are no Exception
            if ctx.meta.get(DEBUG):
                traceback.print_exc()
            raise failure(error) from error


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


DEBUG_OPTION = click.Option(
    ["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
)


def _accept_debug(command: click.Command) -> None:
    """Let `--debug` stand behind a command as well as before it."""
    if all("--debug" not in parameter.opts for parameter in command.params):
        command.params.append(DEBUG_OPTION)
    if isinstance(command, click.Group):
        for member in command.commands.values():
            _accept_debug(member)


def _print_versions(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    for package in (*PACKAGES, "torch"):
        click.echo(f"{package} {version(package)}")
    click.echo(f"python {platform.python_version()}")
    ctx.exit()


@click.group(
    cls=WaveletGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "color": COLORS},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show the versions of the packages and exit.",
)
def cli() -> None:
    """Train, run and inspect WaveletLM models.

    \b
    Start here:
      wavelet config list
      wavelet train demo --out runs/demo
      wavelet generate runs/demo "def "

    Exit status: 0 success, 1 failure, 2 usage or configuration error, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """


def main() -> None:
    """Run the command that the arguments name, and end the process."""
    wait_briefly()
    status: Any = 0
    try:
        cli(prog_name="wavelet")
    except SystemExit as end:
        status = end.code
    except OSError as error:  # of standard output, as `--help` meets it
        status = _failed(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = None  # which Python would flush again, and complain in its own words
        status = status or _failed(error)
    if status in (130, 143):
        leave(status)
    sys.exit(status)


def _failed(error: OSError) -> int:
    if not isinstance(error, BrokenPipeError):
        failure(error).show()
    return 1
