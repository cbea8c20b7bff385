"""One run directory, one process: a lock that even a killed process leaves behind released."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from wavelet_core.file_lock import is_open_file, try_lock

LOCK_FILE = "run.lock"


class RunInUseError(OSError):
    """Another process trains into the directory; the message names it."""


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Keep every other process from training into a directory, which is made where there is none.

    What was made is removed again if nothing else was put there. Raises RunInUseError at once where another is at it.
    """
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK_FILE
    try:
        with _open_locked(path) as file:
            holder = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(" ", "seconds"),
            }
            file.truncate(0)
            file.write(json.dumps(holder).encode())
            file.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()  # while it is locked, so that it is not another's
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _open_locked(path: Path) -> BinaryIO:
    while True:
        file = path.open("a+b")
        locked = try_lock(file)
        if locked is None:
            print(f"{path}: no locks here; let no other process train into this directory", file=sys.stderr)
        if locked is False:
            with file:
                file.seek(0)
                holder = _describe(file.read())
            raise RunInUseError(
                f"{path.parent} is in use: {holder} trains into it; wait for it, stop it, or name another directory"
            )
        if locked is None or is_open_file(path, file):
            return file
        file.close()


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['process']} on {holder['host']}, since {holder['since']},"
    except (ValueError, KeyError, TypeError):
        return "another process"
