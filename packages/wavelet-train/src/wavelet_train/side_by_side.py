"""Runs side by side: processes that each do one run at a time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

from wavelet_core.threads import available_processors
from wavelet_train.interruption import StopOnSignal

# What a process does; it returns the name of the signal that stopped it, if one did.
Work = Callable[[], "str | None"]

THREADS = "OMP_NUM_THREADS"
STOPPED = 3
LAST_LINES = 5


class WorkerError(RuntimeError):
    """A process that does runs has failed; the message has the end of what it said."""


def work_side_by_side(
    work: Work, directory: Path, count: int, on_wait: Callable[[], None] = lambda: None
) -> str | None:
    """Do work in `count` processes, which share the processors unless OMP_NUM_THREADS says otherwise.

    work: what each of them calls, which can be pickled. on_wait: called several times a second until they end.
    What they say is in `worker-N.log` in the directory. Ctrl-C and SIGTERM make each of them save and stop, and so does
    the end of this process; returns the signal's name. Raises WorkerError when one of them fails, once all have ended.
    """
    context = get_context("spawn")
    logs = [directory / f"worker-{index}.log" for index in range(count)]
    threads = os.environ.get(THREADS) or str(max(1, available_processors() // count))
    stop = StopOnSignal()
    with stop:
        workers = [context.Process(target=_work, args=(work, log, threads)) for log in logs]
        for worker in workers:
            worker.start()
        print(f"{count} runs side by side, {threads} threads each; what they say is in {logs[0]}, ...", file=sys.stderr)
        asked = False
        while any(worker.is_alive() for worker in workers):
            connection.wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=0.2)
            if stop.signal_name and not asked:
                asked = True
                _stop(workers)
            on_wait()
    for worker, log in zip(workers, logs, strict=True):
        worker.join()
        if worker.exitcode not in (0, STOPPED) and not stop.signal_name:
            last = log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:] if log.exists() else []
            raise WorkerError(
                f"a process that does runs ended with status {worker.exitcode}; {log} ends: " + "\n".join(last)
            )
    return stop.signal_name


def _stop(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()


def _work(work: Work, log: Path, threads: str) -> None:
    """What a process does."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the terminal reaches the first process alone, which passes it on
    os.environ[THREADS] = threads
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(STOPPED if work() else 0)


def _stop_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
