"""The processes that train one model together, started by torchrun."""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from wavelet_core.config import ConfigurationError
from wavelet_core.devices import resolve_device
from wavelet_core.tensor_files import CheckpointError

Result = TypeVar("Result")

# The first process may make the tokens of a large data set while the others wait.
PATIENCE = timedelta(days=7)
# What gloo and NCCL say when a process is gone.
LOST = re.compile("gloo|nccl|connection (reset|closed|refused)|process ?group|timed? ?out", re.IGNORECASE)


class RankLostError(ConnectionError):
    """Another process of the training has ended or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Without arguments: the only one.

    rank: its number, of `count`; the first is 0, and only that one writes files and speaks. local_rank, local_count:
    the same on its machine. control: the group through which they agree, whatever device they compute on.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    control: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process, where `train.device` is `name`: each on a machine has one of its own."""
        device = resolve_device(name, "train.device")
        if self.count > 1 and device.type == "cuda" and ":" not in str(device):
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        return device

    def rows(self, batch_size: int) -> slice:
        """This process's windows of a batch. Raises ConfigurationError unless all have equally many."""
        if batch_size % self.count:
            raise ConfigurationError(
                f"train.batch_size={batch_size} windows cannot be shared out evenly among {self.count} processes: use "
                f"a multiple of {self.count}, or start another number of processes"
            )
        each = batch_size // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, on the value's device."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.count

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sums over all processes, in float64."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, group=self.control)
        return tensor.numpy()

    def largest(self, value: int) -> int:
        """The largest of all processes' numbers."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, self.control)
        return int(tensor.item())

    def gather(self, value: Result) -> list[Result]:
        """What every process has, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self.control)
        return values

    def join_rows(self, tensor: Tensor) -> Tensor:
        """All processes' rows of a tensor, one after the other."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.largest(0)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, done by the first process before the others begin, which then find done what it did.

        Where it fails in the first, the others end.
        """
        if not self.is_first:
            if self.largest(0):
                raise SystemExit(1)
            return work()
        try:
            result = work()
        except BaseException:
            self.largest(1)
            raise
        self.largest(0)
        return result


ALONE = Ranks()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """This process among those that torchrun has started; the only one where it has not.

    Raises RankLostError when another process ends before it should; this one can then only end, with status 1.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    began = not distributed.is_initialized()
    if began:
        kind = resolve_device(device, "train.device").type
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    rank, lost = distributed.get_rank(), False
    try:
        local = (int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", count)))
        yield Ranks(rank, count, *local, control)
    except RuntimeError as error:
        if isinstance(error, CheckpointError) or not LOST.search(str(error)):
            raise
        lost = True
        atexit.register(_end_at_once)
        raise RankLostError(
            f"process {rank} of {count} ends: another process has ended or does not answer. Nothing that was saved is "
            "lost: start all of them again with --resume"
        ) from error
    finally:
        if began and not lost:
            distributed.destroy_process_group()


def _end_at_once() -> None:
    """End without what the library would wait for, up to half an hour: exchanges that were under way with the lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
