"""Ctrl-C and SIGTERM end a command at once: with a message, its own exit status, and nothing half-written."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

# Seconds that the main thread gets to notice a signal, which native code can keep it from, and then to clean up.
UNTIL_NOTICED = 0.6
UNTIL_CLEAN = 10.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def handle_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt and Terminated in the main thread.

    A thread watches that they have an effect: where native code runs on, or takes no exception, it ends the process.
    What that leaves of unfinished files is temporary, and removed by whoever writes them next.
    """
    noticed = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        noticed.set()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    watched, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.detach())  # Python writes the signal's number into it, whatever the main thread does
    threading.Thread(target=_watch, args=(watched, noticed), daemon=True).start()


def _watch(watched: socket.socket, noticed: threading.Event) -> None:
    number = 0
    while number not in (signal.SIGINT, signal.SIGTERM):
        number = watched.recv(1)[0]
    if noticed.wait(UNTIL_NOTICED):
        time.sleep(UNTIL_CLEAN)
    leave(_say(number))


def report(interrupt: KeyboardInterrupt) -> int:
    """Say on stderr what stopped the command; returns its exit status."""
    return _say(signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def _say(number: int) -> int:
    print(f"wavelet: stopped by {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


def leave(status: int) -> None:
    """End the process without waiting for its threads."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, nobody reads it, it is closed
            stream.flush()
    os._exit(status)
