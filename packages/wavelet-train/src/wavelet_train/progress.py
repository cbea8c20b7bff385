"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
LINE = "{desc}: {n_fmt}{unit}, {rate_noinv_fmt}, {elapsed_s:.1f} s{postfix}"
LINE_OF_UNFINISHED = LINE.replace("{unit},", "{unit} of {total_fmt}{unit}, {remaining} left,")


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
            self._write(LINE)

    def advance(self, units: int, note: str = "") -> None:
        """So many units more are done; the note, such as the present loss, stands at the end of the line."""
        self.done += units
        self.note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._write(LINE_OF_UNFINISHED if self.done < self.total else LINE)

    def message(self, text: str) -> None:
        """Write a line that stays, above the bar where there is one."""
        tqdm.write(text, file=sys.stderr)

    def _write(self, line: str) -> None:
        self._last_line = time.monotonic()
        text = tqdm.format_meter(
            self.done,
            self.total,
            self._last_line - self._started,
            prefix=self.description,
            unit=self.unit,
            unit_scale=True,
            initial=self._done_before,
            postfix=self.note,
            bar_format=line,
        )
        print(text, file=sys.stderr, flush=True)
