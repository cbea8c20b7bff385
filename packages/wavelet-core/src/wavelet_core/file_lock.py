"""Locks on open files, which the system releases when their process ends, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any


def try_lock(file: IO[Any]) -> bool | None:
    """Lock a file that is open for writing until it is closed or its process ends.

    False where it is locked already, by this process or another; None where the system or the file system has no locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_open_file(path: Path, file: IO[Any]) -> bool:
    """Whether the open file still lies there. Who had its lock may have removed it before it was locked here."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
