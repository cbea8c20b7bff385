"""How commands use the processor's threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavelet_core.threads import ThreadChoice

# How threads wait for others, in the libraries that torch is built with: GCC's, and LLVM's or Intel's (milliseconds).
WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}


def wait_briefly() -> None:
    """Let threads that wait for others soon go to sleep, unless the environment says how they wait.

    It is read when torch is imported, and never again.
    """
    if not {"OMP_WAIT_POLICY", *WAITING} & os.environ.keys():
        os.environ.update(WAITING)


def choose_threads(checkpoint: Path, model: Any, threads: int | None, positions: int) -> ThreadChoice:
    """A `ThreadChoice`; where `threads` is None, the number that the checkpoint's run was told to use comes first."""
    from wavelet_core.checkpoint import read_config
    from wavelet_core.threads import ThreadChoice

    run = read_config(checkpoint).get("train")
    return ThreadChoice(threads or (run.get("threads") if isinstance(run, dict) else None), model, positions)
