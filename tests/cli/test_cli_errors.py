"""Exit statuses and messages: what a person sees when something goes wrong."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from wavelet_cli import PACKAGES
from wavelet_cli.main import WaveletGroup
from wavelet_core.config import ConfigurationError
from wavelet_core.registry import RegistryError


def run_raising(error: BaseException, *arguments: str) -> Result:
    """Run a command that raises `error`; it is called `fail`."""
    group = WaveletGroup(name="wavelet")

    @group.command("fail")
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, arguments or ["fail"], prog_name="wavelet")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigurationError("file.yaml: model.width: must be positive"), 2, "file.yaml: model.width: must be positive"),
        (RegistryError("unknown mixer 'x'"), 2, "unknown mixer 'x'"),
        (ValueError("the file is truncated"), 1, "the file is truncated"),
        (FileNotFoundError(2, "No such file or directory", "a.yaml"), 1, "a.yaml: No such file or directory"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines (`--debug` shows the traceback)"),
        (ValueError(), 1, "ValueError:  (`--debug` shows the traceback)"),
        (ImportError("install x"), 1, "ImportError: install x (`--debug` shows the traceback)"),
    ],
)
def test_an_exception_becomes_one_message_and_a_status(error, status, message):
    result = run_raising(error)
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", f"wavelet: error: {message}\n")


def test_an_interrupt_exits_with_130():
    result = run_raising(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "wavelet: stopped by SIGINT\n")


@pytest.mark.parametrize("arguments", [("fail", "--debug"), ("--debug", "fail")])
def test_debug_shows_the_traceback_and_keeps_the_status(arguments):
    result = run_raising(ConfigurationError("wrong"), *arguments)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("wavelet: error: wrong\n")


def test_every_command_explains_itself_with_examples():
    def visit(command: click.Command, path: list[str]) -> None:
        if isinstance(command, click.Group):
            for name, member in command.commands.items():
                visit(member, [*path, name])
            return
        result = CliRunner().invoke(group, [*path, "--help"], prog_name="wavelet")
        assert result.exit_code == 0, path
        assert "Example" in result.stdout, f"{' '.join(path)} --help has no example"
        assert "--debug" in result.stdout, path

    group = WaveletGroup(name="wavelet")
    visit(group, [])


def test_a_misspelt_command_names_the_nearest(wavelet):
    result = wavelet("plugin")
    assert result.exit_code == 2
    assert "plugins" in result.stderr


def test_version_lists_the_packages_and_torch(wavelet):
    result = wavelet("--version")
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == [*PACKAGES, "torch", "python"]


def test_help_does_not_import_torch():
    program = """
import sys
from wavelet_cli.main import cli
cli(["--help"], standalone_mode=False)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0
