"""Exit statuses and messages: what a person sees when something goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_panic_of_native_code_is_no_traceback():
    class Panic(BaseException):
        pass

    result = run_raising(Panic("stack overflow"))
    assert (result.exit_code, result.stderr) == (
        1,
        "wavelet: error: Panic: stack overflow (`--debug` shows the traceback)\n",
    )


LONG = "x" * 100_000
DEEP = "[" * 3000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", LONG], "x ... x"),
        (["train", f"{LONG}.yaml"], ".yaml"),
        (["train", "demo", "--set", LONG], "--set xxx"),
        (["train", "demo", "--set", f"model.mixer={LONG}"], "unknown mixer 'xxx"),
        (["train", "demo", "--set", f"train.{LONG}=1"], "unknown field"),
        (["train", "demo", "--set", f"a={DEEP}"], "--set a=[[["),
        (["train", "demo", "--set", "train.steps=" + "9" * 5000], "--set train.steps=999"),
        (["train", "demo", "--set", "train.seed=9223372036854775808"], "train.seed"),
        (["evaluate", LONG], "x ... x"),
        (["generate", "run", "--sampler", LONG], "unknown sampler"),
        (["generate", "run", "--sampler", DEEP], "'--sampler': '[[["),
        (["generate", "run", "--sampler", "2020-99-99"], "'--sampler': '2020-99-99'"),
        (["generate", "run", "--sampler", f"{{kind: top_k, k: {LONG}}}"], "samplers[0].k"),
        (["generate", "run", "-n", str(2**70)], "-n"),
        ([LONG], "No such command"),
        ([f"--{LONG}"], "No such option"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_huge_is_named_and_not_echoed(wavelet, arguments, named):
    result = wavelet(*arguments)
    assert isinstance(result.exception, SystemExit) and result.exit_code in (1, 2)
    assert named in result.stderr
    assert len(result.stderr) < 1500 and "--debug` shows" not in result.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.yaml", f"model: {DEEP}"),
        ("deep.json", '{"model": ' + "[" * 100_000),
        ("key.yaml", "? [a]\n: b"),
        ("date.yaml", "train: {steps: 2020-99-99}"),
        ("number.json", '{"train": {"steps": ' + "9" * 5000 + "}}"),
        ("nul.yaml", "model: \0"),
    ],
    ids=lambda value: value[:12],
)
def test_a_configuration_file_that_no_reader_takes_is_named(wavelet, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    result = wavelet("config", "show", tmp_path / name)
    assert result.exit_code == 2 and result.stderr.startswith(f"wavelet: error: {tmp_path / name}")
    assert len(result.stderr) < 700


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["config", "reference"]])
def test_output_that_cannot_be_written_is_one_message(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "wavelet_cli", *arguments]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    message = "wavelet: error: standard output: No space left on device\n"
    assert (result.returncode, result.stderr) == (1, message)


def test_output_that_nobody_reads_ends_quietly(wavelet_process):
    process = wavelet_process("config", "reference")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait()


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
