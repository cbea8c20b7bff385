"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from wavelet_train.quantities import byte_size, duration

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts units of work done; use it as a context manager.

    total: how many units there will be, None when nobody knows. done: units that an earlier process did already; they
    do not count in the rate. Work that is done before the first plain line is due writes its last line only.
    """

    def __init__(self, description: str, total: int | None = None, unit: str = "B", done: int = 0) -> None:
        self.description, self.total, self.unit = description, total or 0, unit
        self.done = self._done_before = done
        self.note = ""
        self._started = self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=description,
                total=total,
                initial=done,
                unit=unit,
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._write(finished=True)

    def advance(self, units: int, note: str = "") -> None:
        """So many units more are done; the note says where that is, such as the step and its loss."""
        self.done += units
        self.note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif self.done != self.total and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._write(finished=self.done > self.total)

    def message(self, text: str) -> None:
        """Write a line that stays, above the bar where there is one."""
        tqdm.write(text, file=sys.stderr)

    def _write(self, finished: bool) -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._started
        rate = (self.done - self._done_before) / seconds if seconds else 0.0
        parts = [self.note] if self.note else []
        if finished:
            parts += [f"{self._amount(self.done)} in {duration(seconds)}", f"{self._amount(rate)}/s"]
        else:
            parts += [f"{self._amount(self.done)} of {self._amount(self.total)}", f"{self._amount(rate)}/s"]
            parts += [f"{duration((self.total - self.done) / rate)} left"] if rate else []
        print(f"{self.description}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def _amount(self, units: float) -> str:
        return byte_size(units) if self.unit == "B" else f"{units:,.0f}{self.unit}"
