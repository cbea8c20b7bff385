"""Progress: plain lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable

import pytest

from wavelet_train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was written to stderr, every look at the clock ten seconds after the one before."""
    clock = itertools.count(step=10.0)
    monkeypatch.setattr("wavelet_train.progress.time.monotonic", lambda: next(clock))
    return lambda: capsys.readouterr().err.splitlines()


def test_plain_lines_tell_note_amount_rate_and_time_left(lines: Callable[[], list[str]]) -> None:
    with Progress("training", 100_000, " tokens") as progress:
        progress.advance(1000, "step 1 of 100, loss 3.210")
        progress.message("step 1: validated")
        progress.advance(99_000, "step 100 of 100, loss 2.345")
    assert lines() == [
        "training: step 1 of 100, loss 3.210, 1,000 tokens of 100,000 tokens, 50 tokens/s, 33 min 0 s left",
        "step 1: validated",
        "training: step 100 of 100, loss 2.345, 100,000 tokens in 30 s, 3,333 tokens/s",
    ]


@pytest.mark.parametrize(("total", "first"), [(None, "5.0 MiB in 20 s, 256.0 KiB/s"), (6 << 20, "5.0 MiB of 6.0 MiB")])
def test_totals_may_be_unknown_or_estimates(lines: Callable[[], list[str]], total: int | None, first: str) -> None:
    with Progress("tokenizing", total) as progress:
        progress.advance(5 << 20)
    written = lines()
    assert written[0].startswith(f"tokenizing: {first}") and written[1:] == ["tokenizing: 5.0 MiB in 30 s, 170.7 KiB/s"]


def test_rate_counts_only_what_this_process_did(lines: Callable[[], list[str]]) -> None:
    with Progress("training", 10_000, " tokens", done=5000) as progress:
        progress.advance(1000)
    assert lines()[0] == "training: 6,000 tokens of 10,000 tokens, 50 tokens/s, 1 min 20 s left"


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", 4000, " tokens") as progress:
        progress.advance(4000, "loss 3.210")
        progress.message("step 2: validated")
    text = terminal.getvalue()
    assert "100%" in text and "loss 3.210" in text and "tokens/s" in text and "step 2: validated\n" in text
