"""Memory of what was verified, so that a large checkpoint is read for that once and not at every start.

A file in `<cache>/verified/` says that a check has passed. Its name is a hash of where the checked files lie and of
their inodes, sizes and times: the system sets a new time of change at every write. What it cannot tell is damage below
the file system, on the disk itself; what a check says is forgotten after LIFETIME.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import xxhash

from wavelet_core.cache_directory import default_cache_directory

LARGE = 1 << 26  # bytes; less is read sooner than it is remembered
LIFETIME = 30 * 24 * 3600.0  # seconds
CLOCK_STEP = 2.0  # seconds in which some file systems give a second write the time of the first


def check_once(files: Iterable[Path], check: Callable[[], object]) -> None:
    """Call `check`, which reads these files and raises where they are damaged, unless it passed for them before."""
    paths = [Path(os.path.realpath(path)) for path in files]  # which a link to itself does not stop
    before = _identities(paths)
    if sum(size for _, _, _, size, *_ in before) < LARGE:
        check()
        return
    key = xxhash.xxh3_128_hexdigest(json.dumps(before).encode())
    marker = default_cache_directory() / "verified" / key
    now = time.time()
    with suppress(OSError):
        if now - marker.stat().st_mtime < LIFETIME:
            return
    check()
    newest = max(max(times) for *_, times in before)
    if _identities(paths) == before and now - newest / 1e9 > CLOCK_STEP:
        with suppress(OSError):
            _remember(marker, now)


def _identities(paths: list[Path]) -> list[tuple[str, int, int, int, tuple[int, int]]]:
    return [
        (str(path), found.st_dev, found.st_ino, found.st_size, (found.st_mtime_ns, found.st_ctime_ns))
        for path, found in ((path, os.stat(path)) for path in paths)
    ]


def _remember(marker: Path, now: float) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    for other in marker.parent.iterdir():
        if now - other.stat().st_mtime > LIFETIME:
            other.unlink()
    marker.touch()
