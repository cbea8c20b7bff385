"""Writing checkpoints while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch import Tensor


class CheckpointWriter:
    """Does writing jobs at once, or in the background, one after the other, in a thread of its own.

    What a job in the background writes has to be a `snapshot`, which takes as much memory. After a job that fails none
    is done any more; the error is raised by what is called next.
    """

    def __init__(self, background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint writer") if background else None
        self._jobs: list[Future[None]] = []
        self._error: Exception | None = None

    def snapshot(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors as a job may write them: in the background, copies in the processor's memory."""
        if self._thread is None:
            return tensors
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def write(self, job: Callable[[], None]) -> None:
        """Do a job, or have it done after those before."""
        if self._thread is None:
            job()
        else:
            self._jobs.append(self._thread.submit(self._do, job))

    def _do(self, job: Callable[[], None]) -> None:
        if self._error is None:
            try:
                job()
            except Exception as error:
                self._error = error

    def check(self) -> None:
        """Raise the error of a job that failed."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until all jobs are done, and raise the error of one that failed."""
        self.close()
        self.check()

    def close(self) -> None:
        """Wait until all jobs are done, whatever became of them."""
        wait(self._jobs)
        self._jobs.clear()
