"""Where a run's records go: into metrics.jsonl, and to the loggers that are configured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from wavelet_core.config import ConfigurationError
from wavelet_train.logger import LoggedRun, Logger
from wavelet_train.run_directory import MetricsFile


class RunRecords:
    """Use it as a context manager, which closes the loggers.

    A logger that fails is left out from then on, with one warning on stderr. What metrics.jsonl raises is raised: a
    run is resumed by it.
    """

    _metrics: MetricsFile | None = None

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = list(loggers)

    def begin(self, metrics: MetricsFile, run: LoggedRun) -> None:
        """Before the first record. Raises ConfigurationError where a logger cannot work as it is configured."""
        self._metrics = metrics
        self._tell(lambda logger: logger.start(run), refuses=ConfigurationError)

    def write(self, **record: Any) -> None:
        """One record: its `event`, its `step` and whatever JSON can hold."""
        if self._metrics is None:  # of a process that is not the first
            return
        self._metrics.write(**record)
        self._tell(lambda logger: logger.write(record))

    def __enter__(self) -> RunRecords:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(lambda logger: logger.close())

    def _tell(self, call: Callable[[Logger], None], refuses: type[Exception] | tuple[()] = ()) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except refuses:
                raise
            except Exception as error:
                self._loggers.remove(logger)
                reason = " ".join(str(error).split())[:300]
                tqdm.write(
                    f"Warning: the logger {type(logger).__name__} failed ({type(error).__name__}: {reason}) and "
                    "records nothing more; training and metrics.jsonl go on",
                    file=sys.stderr,
                )
