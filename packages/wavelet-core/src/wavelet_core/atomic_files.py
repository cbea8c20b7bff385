"""Writing files and directories whole or not at all: to a temporary sibling, flushed to disk and renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from wavelet_core.file_lock import try_lock

LOCK_FILE = "lock"


class WriteError(OSError):
    """A file or directory that could not be written; what was in its place is there as it was.

    errno, strerror: why. filename: its path.
    """

    def __str__(self) -> str:
        kept = "what was there before is unchanged" if os.path.exists(self.filename) else "nothing was left there"
        return f"{self.filename}: cannot be written: {self.strerror}; {kept}; {self._remedy()}"

    def _remedy(self) -> str:
        if self.errno in (errno.ENOSPC, errno.EDQUOT):
            return "free some space there, or name another directory"
        if self.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return "name a directory that you may write to"
        return "name another place"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise as WriteError what goes wrong on the way to the path or beside it; errors of other files stay."""
    try:
        if "\0" in str(path):
            raise OSError(errno.EINVAL, "a path cannot contain the character NUL")
        yield
    except OSError as error:
        target = path.absolute()
        place = target if error.filename is None else Path(os.fsdecode(error.filename)).absolute()
        if error.errno is None or not (place.is_relative_to(target.parent) or target.is_relative_to(place)):
            raise
        raise WriteError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:  # its only sign of a system error is the text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise WriteError(code, os.strerror(code) if number else str(error), str(path)) from error


def check_writable(path: Path) -> None:
    """Find out before long work whether files can be made beside `path`, whose parents are made. Raises WriteError."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def append_whole(path: Path, data: bytes) -> None:
    """Append bytes to a file, all of them or none. Raises WriteError."""
    with _writing(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            file.truncate(size)
            raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary sibling of `path` (a file, or a directory that it makes), then rename it there.

    An existing directory changes places with the new one and is removed last. Files get the mode that the umask gives,
    whoever wrote them. What an earlier, killed call left is cleaned up first.

    Raises WriteError when it cannot be written, and whatever `write` raises.
    """
    with _writing(path):
        _write(path, write)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    changed = [path.parent, *(folder.parent for folder in path.parents if not folder.exists())]
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    fresh, old = workspace / "new", workspace / "old"
    try:
        with open(workspace / "unlocked", "wb") as lock:
            try_lock(lock)
            # Under this name `recover` looks for it, and so never finds one that is not locked yet.
            os.rename(lock.name, workspace / LOCK_FILE)
            write(fresh)
            _flush(fresh, os.fstat(lock.fileno()).st_mode & 0o666)
            if not path.is_dir():
                os.replace(fresh, path)
            elif not _exchange(fresh, path):
                os.replace(path, old)
                try:
                    os.replace(fresh, path)
                except BaseException:
                    os.replace(old, path)
                    raise
            for folder in changed:
                _fsync(folder)
    finally:
        _remove(workspace)


def recover(path: Path) -> None:
    """Clean up what killed calls of `write_atomically` left of `path`; call this before opening it.

    A kill between the two renames that replace a directory leaves its place empty: the new one, which is whole, goes
    there. Everything else that is temporary is removed, except what a living process is writing, what cannot be
    changed, and what lies on a file system without locks.
    """
    with suppress(OSError):
        for workspace in list(path.parent.iterdir()):
            if workspace.name.rpartition(".")[0] == f".{path.name}":
                _recover_from(workspace, path)


def _recover_from(workspace: Path, path: Path) -> None:
    with suppress(OSError):
        with open(workspace / LOCK_FILE, "r+b") as lock:
            if not try_lock(lock):
                return
            if not path.exists() and (workspace / "old").exists() and (workspace / "new").exists():
                os.replace(workspace / "new", path)
                _fsync(path.parent)
        _remove(workspace)


def _remove(workspace: Path) -> None:
    """Remove a workspace, its lock last: `recover` finds what a kill leaves of it."""
    for path in (workspace / "new", workspace / "old"):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(workspace, ignore_errors=True)


def _flush(fresh: Path, mode: int) -> None:
    """Give the file, or every file of the directory, its mode, and bring all of it to disk."""
    for path in [*fresh.rglob("*"), fresh]:
        if path.is_file():
            path.chmod(mode)
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
