"""A `wavelet` command in a process of its own: real signals, real file descriptors, bounded memory and time."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PROCESSOR_LIMIT = 20  # seconds
TIME_LIMIT = 60.0  # seconds, for processes that wait, or share the machine with many
RECURSION_LIMIT = 1000  # as Python has it
MEMORY_LIMIT = 3 << 30
POLL = 0.002


@dataclass(frozen=True)
class Outcome:
    """How a process ended. status: its exit status, or minus the number of the signal that killed it."""

    status: int
    output: str
    errors: str
    seconds: float
    interrupted: bool = False
    hung: bool = False


class Process:
    """`wavelet ARGUMENTS...` or a function, in a folder where what it prints is kept.

    It is a fork of this process, which should have imported what it needs, or a new interpreter. The token cache is the
    folder's `cache`.
    """

    def __init__(
        self,
        folder: Path,
        work: Sequence[str] | Callable[[], object],
        new_interpreter: bool = False,
        stdin: bytes = b"",
    ) -> None:
        self._streams = [folder / f".{name}" for name in ("stdin", "stdout", "stderr")]
        self._streams[0].write_bytes(stdin)
        self._status: int | None = None
        self._started = time.monotonic()
        arguments = None if callable(work) else list(work)
        if new_interpreter:
            assert arguments is not None
            with self._streams[1].open("wb") as output, self._streams[2].open("wb") as errors:
                environment = {**os.environ, "WAVELET_CACHE": str(folder / "cache")}
                command = [sys.executable, "-m", "wavelet_cli", *arguments]
                self.pid = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=errors).pid
            return
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _become(folder, self._streams, work if callable(work) else partial(_wavelet, arguments))

    def ended(self) -> bool:
        if self._status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def kill(self) -> bool:
        """Kill the process, and wait until it is gone; False if it had ended before."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            while not self.ended():
                time.sleep(POLL)
        return self._status == -signal.SIGKILL

    def wait(self, seconds: float | None = None) -> Outcome:
        """How the process ends. Raises TimeoutError if that takes longer."""
        started = time.monotonic()
        while not self.ended():
            if seconds is not None and time.monotonic() - started > seconds:
                raise TimeoutError
            time.sleep(POLL)
        return self.outcome()

    def outcome(self, interrupted: bool = False, hung: bool = False) -> Outcome:
        """What an ended process left."""
        assert self._status is not None
        output, errors = (stream.read_bytes().decode("utf-8", "replace") for stream in self._streams[1:])
        hung = hung or self._status == -signal.SIGXCPU
        return Outcome(self._status, output, errors, time.monotonic() - self._started, interrupted, hung)


def run_bounded(process: Process, interrupt_after: float | None = None) -> Outcome:
    """Wait for a process; interrupt it as by Ctrl-C after so many seconds, and kill it after TIME_LIMIT.

    One that has used up PROCESSOR_LIMIT hangs, too: the system ends it.
    """
    try:
        return process.wait(TIME_LIMIT if interrupt_after is None else interrupt_after)
    except TimeoutError:
        pass
    if interrupt_after is not None:
        os.kill(process.pid, signal.SIGINT)
        try:
            process.wait(TIME_LIMIT - interrupt_after)
            return process.outcome(interrupted=True)
        except TimeoutError:
            pass
    return process.outcome(interrupt_after is not None, hung=process.kill())


def _wavelet(arguments: Sequence[str]) -> None:
    from wavelet_cli.main import cli

    cli(list(arguments), prog_name="wavelet")


def _become(folder: Path, streams: Sequence[Path], function: Callable[[], object]) -> None:
    """Turn this fork into the process of the function, and end it."""
    status = 70
    try:
        os.chdir(folder)
        for number, stream in enumerate(streams):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
            os.dup2(os.open(stream, flags, 0o600), number)
        for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
            stream.reconfigure(encoding="utf-8", errors=errors)  # type: ignore[union-attr]
        os.environ["WAVELET_CACHE"] = str(folder / "cache")
        sys.setrecursionlimit(RECURSION_LIMIT)
        _limit()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        function()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                status = status or 1
        os._exit(status)


def _limit() -> None:
    """Limit the processor time, and the memory beside what is mapped now where the system tells that."""
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_LIMIT, PROCESSOR_LIMIT + 1))
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
