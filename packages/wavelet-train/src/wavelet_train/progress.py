"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts units of work done; use it as a context manager.

    description: what is going on. total: how many units there will be, None when nobody knows. done: units that an
    earlier process did already; they do not count in the rate. seconds_between_lines: how often a plain line is written
    where stderr is no terminal; short work writes its last line only.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        unit: str = "B",
        done: int = 0,
        seconds_between_lines: float = 10.0,
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = self._done_before = done
        self.note = ""
        self._seconds_between_lines = seconds_between_lines
        self._started = self._last_line = time.monotonic()
        self._bar = (
            tqdm(
                desc=description,
                total=total,
                initial=done,
                unit=unit,
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
            )
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
            self.total = None
            self._write_line()

    def advance(self, units: int, note: str | None = None) -> None:
        """So many units more are done; the note, such as the present loss, stands at the end of the line."""
        self.done += units
        if note is not None:
            self.note = note
        if self._bar is not None:
            if note is not None:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._last_line >= self._seconds_between_lines:
            self._write_line()

    def message(self, text: str) -> None:
        """Write a line that stays, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _write_line(self) -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._started
        rate = (self.done - self._done_before) / max(seconds, 1e-9)
        parts = [f"{tqdm.format_sizeof(self.done)}{self.unit}"]
        if self.total is not None and self.done < self.total:
            parts[0] += f" of {tqdm.format_sizeof(self.total)}{self.unit}"
            parts.append(f"{tqdm.format_interval((self.total - self.done) / max(rate, 1e-9))} left")
        parts += [f"{tqdm.format_sizeof(rate)}{self.unit}/s", f"{seconds:.1f} s"]
        if self.note:
            parts.append(self.note)
        print(f"{self.description}: {', '.join(parts)}", file=sys.stderr, flush=True)
