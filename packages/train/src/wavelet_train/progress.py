"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts units of work done; use it as a context manager.

    description: what is going on. total: how many units there will be, None when nobody knows. seconds_between_lines:
    how often a plain line is written where stderr is no terminal; short work writes its last line only.
    """

    def __init__(
        self, description: str, total: int | None = None, unit: str = "B", seconds_between_lines: float = 10.0
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = 0
        self._seconds_between_lines = seconds_between_lines
        self._started = self._last_line = time.monotonic()
        self._bar = (
            tqdm(desc=description, total=total, unit=unit, unit_scale=True, file=sys.stderr, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None:
            self._write_line()

    def advance(self, units: int) -> None:
        """So many units more are done."""
        self.done += units
        if self._bar is not None:
            self._bar.update(units)
        elif time.monotonic() - self._last_line >= self._seconds_between_lines:
            self._write_line()

    def _write_line(self) -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._started
        rate = self.done / max(seconds, 1e-9)
        parts = [f"{tqdm.format_sizeof(self.done)}{self.unit}"]
        if self.total and self.done < self.total:
            parts[0] += f" of {tqdm.format_sizeof(self.total)}{self.unit}"
            parts.append(f"{tqdm.format_interval((self.total - self.done) / max(rate, 1e-9))} left")
        parts += [f"{tqdm.format_sizeof(rate)}{self.unit}/s", f"{seconds:.1f} s"]
        print(f"{self.description}: {', '.join(parts)}", file=sys.stderr, flush=True)
