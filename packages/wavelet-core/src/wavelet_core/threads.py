"""How many processor threads to compute with: by the work of a step, and by what the machine is doing.

The threads of an operation wait for the last of them. Small operations take longer that way than on one thread, and far
longer where a thread has to share its processor with another process.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

ROOT = Path("/")  # where the files are in which the system says what it does
MOST_THREADS = 1024
# Multiply-adds of a step that are worth one more thread, and how many positions a matrix is multiplied with in the time
# that reading it takes; measured in docs/benchmarks.md.
WORK_PER_THREAD = 1 << 24
FREE_POSITIONS = 8
# Seconds between two looks; the system counts a processor's time in hundredths of a second.
FIRST_LOOK, LOOK_EVERY = 0.2, 1.0


class ThreadChoice:
    """The number of threads that torch, and the native kernel with it, compute with in this process.

    threads: that many; None leaves it at OMP_NUM_THREADS where the environment has that, and otherwise takes as many
    as steps of the model are worth, but no more than the processors that other processes leave free. Looking at these
    takes 0.2 s, for steps that are worth several threads. positions: tokens that a step works on, batch times length.
    A model on another device gets what torch has. apply: False leaves torch as it is; `threads` says the number.

    Raises ValueError for a number that is not from 1 to 1024.
    """

    def __init__(self, threads: int | None, model: nn.Module, positions: int = 1, apply: bool = True):
        self.threads = torch.get_num_threads()
        self._apply = apply
        self._worth = 1
        self._free: FreeProcessors | None = None
        if threads is not None:
            self._use(threads)
        elif "OMP_NUM_THREADS" not in os.environ and all(tensor.is_cpu for tensor in model.parameters()):
            self._worth = min(available_processors(), max(1, step_work(model, positions) // WORK_PER_THREAD))
            if self._worth > 1:
                self._free = FreeProcessors()
                time.sleep(FIRST_LOOK)
            self._choose()

    def renew(self) -> None:
        """Choose again if the last time is a second ago; to be called between steps."""
        if self._free is not None and self._free.age >= LOOK_EVERY:
            self._choose()

    def _choose(self) -> None:
        self._use(max(1, min(self._worth, self._free.look())) if self._free else 1)

    def _use(self, threads: int) -> None:
        if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"the number of threads must be a whole number from 1 to {MOST_THREADS}")
        if self._apply and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self.threads = threads


def use_threads(threads: int | None, model: nn.Module, positions: int = 1) -> int:
    """Make a `ThreadChoice` that stays; returns the number of threads."""
    ThreadChoice(threads, model, positions)
    return torch.get_num_threads()


def step_work(model: nn.Module, positions: int) -> int:
    """Roughly the multiply-adds of a forward pass over so many positions: every matrix once, tables of rows never."""
    tables = {part for table in model.modules() if hasattr(table, "num_embeddings") for part in table.modules()}
    matrices = {
        id(tensor): tensor.numel()
        for module in model.modules()
        if module not in tables
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensor.dim() > 1
    }
    return max(positions, FREE_POSITIONS) * sum(matrices.values())


class FreeProcessors:
    """Those of the processors that this process may use that others left free since the last look.

    Where the system does not say what each processor does, the load average is taken off at every look.
    """

    def __init__(self) -> None:
        self._remember()

    @property
    def age(self) -> float:
        """Seconds since the last look."""
        return time.monotonic() - self._time

    def look(self) -> int:
        """Their number, rounded."""
        idle, own, since = self._idle, self._own, self._time
        self._remember()
        if idle is None or self._idle is None:
            free = available_processors() - (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
        else:
            seconds = self._time - since
            free = (self._idle - idle + self._own - own) / seconds
        return min(available_processors(), round(free))

    def _remember(self) -> None:
        self._time, self._own, self._idle = time.monotonic(), time.process_time(), _idle_seconds()


def available_processors() -> int:
    """Processors that this process may use: those it is bound to, within the quotas of its control groups."""
    return max(1, min([len(_bound_to()), *_quotas()]))


def _bound_to() -> set[int]:
    """The processors that this process may run on, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quotas() -> list[int]:
    """Whole processors that each control group around this process is granted, where it is limited."""
    try:
        group = Path((ROOT / "proc/self/cgroup").read_text().rpartition("0::/")[2].strip())
    except OSError:
        return []
    quotas = []
    for directory in (group, *group.parents):
        with suppress(OSError, ValueError):  # without a limit there is no file, or it says "max"
            limit, period = map(int, (ROOT / "sys/fs/cgroup" / directory / "cpu.max").read_text().split())
            quotas.append(limit // period)
    return quotas


def _idle_seconds() -> float | None:
    """How long the processors that this process may use have been idle altogether; None where nothing says so."""
    try:
        lines = (ROOT / "proc/stat").read_text().splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None
    fields = {name: numbers for name, *numbers in map(str.split, lines) if name.startswith("cpu")}
    own = [fields[f"cpu{number}"] for number in _bound_to() if f"cpu{number}" in fields]
    return sum(int(idle) + int(waiting) for _, _, _, idle, waiting, *_ in own) / ticks if own else None
