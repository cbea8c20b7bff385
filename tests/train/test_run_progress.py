"""Progress: plain lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import re
import sys

import pytest

from wavelet_train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_tell_amount_time_left_rate_and_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wavelet_train.progress.SECONDS_BETWEEN_LINES", 0)
    with Progress("training", 4000, " tokens", done=1000) as progress:
        progress.advance(1000, "loss 3.210")
        progress.message("step 2: validated")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"training: 2\.00k tokens of 4\.00k tokens, \d\d:\d\d left, .* tokens/s, \d+\.\d s, loss 3\.210", lines[0]
    )
    assert lines[1] == "step 2: validated"


def test_rate_counts_only_what_this_process_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr("wavelet_train.progress.time.monotonic", lambda: next(clock))
    with Progress("training", 10_000, " tokens", done=5000) as progress:
        progress.advance(1000)
    assert "6.00k tokens of 10.0k tokens, 00:40 left, 100 tokens/s, 10.0 s" in capsys.readouterr().err


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", 4000, " tokens") as progress:
        progress.advance(4000, "loss 3.210")
        progress.message("step 2: validated")
    text = terminal.getvalue()
    assert "100%" in text and "loss 3.210" in text and "tokens/s" in text and "step 2: validated\n" in text
