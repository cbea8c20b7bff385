"""Writing files and directories whole or not at all: to a temporary sibling, flushed to disk and renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary sibling of `path` (a file, or a directory that it makes), then rename it there.

    An existing directory changes places with the new one and is removed last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fresh = workspace / "new"
        write(fresh)
        for file in [fresh] if fresh.is_file() else sorted(p for p in fresh.rglob("*") if p.is_file()):
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if not path.is_dir():
            os.replace(fresh, path)
        elif not _exchange(fresh, path):
            old = workspace / "old"
            os.replace(path, old)
            try:
                os.replace(fresh, path)
            except BaseException:
                os.replace(old, path)
                raise
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step, which Linux can do and a rename over a full directory cannot.

    False where the system or the file system has no such step.
    """
    if sys.platform != "linux":
        return False
    working_directory, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(working_directory, os.fsencode(first), working_directory, os.fsencode(second), exchange) == 0)
