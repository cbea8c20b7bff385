"""Colours: on terminals that have them and want them, and nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from wavelet_cli.main import cli
from wavelet_core import ModelConfig, build_model
from wavelet_core.tokenizers import BytesTokenizer

RED, CYAN, BOLD, RESET = "\x1b[31m", "\x1b[36m", "\x1b[1m", "\x1b[0m"
STYLE = re.compile(r"\x1b\[[0-9;]*m")  # a model's own text may hold an escape


@pytest.fixture
def checkpoint(tmp_path):
    build_model(ModelConfig(vocabulary_size=256, width=16, layers=1)).save_pretrained(
        tmp_path / "run", BytesTokenizer()
    )
    return tmp_path / "run"


@pytest.fixture
def terminal(wavelet, monkeypatch):
    """Run `wavelet ARGUMENTS...` as on a terminal with colours."""
    monkeypatch.setitem(cli.context_settings, "color", None)
    return lambda *arguments: wavelet(*arguments, color=True)


def on_a_terminal(**environment: str) -> str:
    """What `wavelet generate`, which lacks its argument, writes to a terminal."""
    pty = pytest.importorskip("pty")
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "wavelet_cli", "generate"]
    subprocess.run(command, env=kept | environment, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    return os.read(controller, 1 << 16).decode()


def test_a_terminal_shows_errors_in_red():
    assert f"Error: {RED}Missing argument 'CHECKPOINT'.{RESET}" in on_a_terminal(TERM="xterm")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}], ids=str)
def test_a_terminal_without_colors_gets_none(environment):
    shown = on_a_terminal(**environment)
    assert "Missing argument 'CHECKPOINT'" in shown and "\x1b" not in shown


def test_failures_are_red(terminal):
    assert terminal("inspect", "nowhere").stderr.startswith(f"{RED}wavelet: error: ")


def test_the_prompt_is_told_from_what_the_model_wrote(terminal, checkpoint):
    shown = terminal("generate", checkpoint, "ab", "--num-tokens", 3, "-n", 2, "--metrics").stdout
    assert shown.startswith(f"{BOLD}--- 1 ---{RESET}\n{CYAN}ab{RESET}") and f"{BOLD}metric" in shown
    assert not terminal("generate", checkpoint, "--prompt", "ab", "--json").stdout.count("\x1b")


def test_titles_are_bold(terminal, checkpoint):
    assert f"{BOLD}file " in terminal("inspect", checkpoint).stdout
    assert terminal("plugins").stdout.startswith(BOLD)


def test_pipes_get_no_colors(wavelet, checkpoint, monkeypatch):
    monkeypatch.setitem(cli.context_settings, "color", None)
    for arguments in (
        ("generate", checkpoint, "ab", "--num-tokens", 3),
        ("inspect", checkpoint),
        ("inspect", "nowhere"),
    ):
        result = wavelet(*arguments)
        assert result.output and not STYLE.search(result.output)
