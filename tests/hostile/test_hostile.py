"""Bad input, kills and full disks: small samples of what the two scripts do, and the whole of it under `slow`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def run(script: str, *arguments: str) -> str:
    """Run a script of this folder; everything that it says."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bad_input_is_refused_or_taken_well(count: int) -> None:
    assert f"{count} cases" in run("run.py", "--count", str(count))


KEPT = "keep_checkpoints: 2, keep_every: 7"
ORDERS = (
    "{}",
    f"{{order: shuffled, accumulation: 2, background_saves: true, {KEPT}}}",
    f"{{order: contiguous, reset_at_documents: true, background_saves: true, {KEPT}}}",
    f"{{order: contiguous, {KEPT}}}",
)


@pytest.mark.parametrize(
    ("kills", "train"),
    [(3, ORDERS[0]), (2, ORDERS[1]), *(pytest.param(300, train, marks=pytest.mark.slow) for train in ORDERS)],
)
def test_killed_runs_end_as_if_nothing_had_happened(kills: int, train: str) -> None:
    assert f"{kills} kills" in run("kills.py", "--kills", str(kills), "--fills", "0", "--train", train)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems are mounted")
@pytest.mark.parametrize("fills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_full_disks_leave_a_run_that_goes_on_or_none(fills: int) -> None:
    if subprocess.run(["unshare", "-rm", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("nothing can be mounted here")
    assert f"{fills} full disks" in run("kills.py", "--kills", "0", "--fills", str(fills))
