"""Stopping a run with Ctrl-C or SIGTERM without losing it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(Exception):
    """Someone asked the run to stop, and it is at a point where it can."""


class StopOnSignal:
    """While entered, the first SIGINT or SIGTERM only sets `signal_name`; a second one acts as it did before.

    Whoever watches signals by `signal.set_wakeup_fd` does not hear of the first one.
    In threads other than the main one, where Python handles no signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        if self._previous:
            signal.set_wakeup_fd(self._wakeup)
        while self._previous:
            signal.signal(*self._previous.popitem())

    def check(self) -> None:
        """Raise Stopped if a stop has been asked for."""
        if self.signal_name is not None:
            raise Stopped(self.signal_name)
