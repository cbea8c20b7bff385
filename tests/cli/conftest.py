"""How the tests call the command line: in process mostly, as a real process where signals or installation matter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from wavelet_cli.main import cli

Wavelet = Callable[..., Result]
WaveletProcess = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def wavelet() -> Wavelet:
    """Run `wavelet ARGUMENTS...` in this process."""

    def run(*arguments: object, **keywords: Any) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="wavelet", **keywords)

    return run


@pytest.fixture(scope="session")
def wavelet_process() -> WaveletProcess:
    """Start `wavelet ARGUMENTS...` as a process, with one more directory of installed packages where wanted."""

    def start(*arguments: object, site: Path | None = None, **keywords: Any) -> subprocess.Popen[str]:
        paths = [str(site) if site else "", os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, "-m", "wavelet_cli", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **keywords,
        )

    return start
