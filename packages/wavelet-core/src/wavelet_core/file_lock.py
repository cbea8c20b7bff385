"""Locks on open files, which the system releases when their process ends, however it ends."""

from __future__ import annotations

import sys
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
