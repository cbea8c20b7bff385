"""How commands use the processor's threads."""

from __future__ import annotations

import os
from collections.abc import Callable
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


def choose_threads(
    checkpoint: Path, model: Any, threads: int | None, positions: int, apply: bool = True
) -> ThreadChoice:
    """A `ThreadChoice`; where `threads` is None, the number that the checkpoint's run was told to use comes first."""
    from wavelet_core.threads import ThreadChoice

    return ThreadChoice(threads or _of_run(checkpoint), model, positions, apply)


def _of_run(checkpoint: Path) -> Any:
    from wavelet_core.checkpoint import read_config

    run = read_config(checkpoint).get("train")
    return run.get("threads") if isinstance(run, dict) else None


def choose_workers(checkpoint: Path, model: Any, threads: int | None, positions: int) -> Callable[[], int] | None:
    """How many batches to score at a time, each on one thread: asked again and again, as many as there would be
    threads. Unlike the number of threads that share a batch, it changes no result. None on accelerators."""
    import torch

    if not all(tensor.is_cpu for tensor in model.parameters()):
        return None
    choice = choose_threads(checkpoint, model, threads, positions, apply=False)
    torch.set_num_threads(1)

    def workers() -> int:
        choice.renew()
        return choice.threads

    return workers


def use_all_threads(checkpoint: Path, model: Any, threads: int | None) -> None:
    """Compute with the threads that are asked for, or else with all that torch has, whatever other processes do: for
    results that must not depend on these."""
    import torch

    choose_threads(checkpoint, model, threads or _of_run(checkpoint) or torch.get_num_threads(), positions=1)
