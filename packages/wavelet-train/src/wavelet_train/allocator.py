"""Memory of training on a processor."""

from __future__ import annotations

import ctypes
import platform

# mallopt(3): give memory at the heap's end back above this size, and map blocks above this size on their own.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> bool:
    """Let freed tensors' memory serve the next ones instead of going back to the system; True if that was possible.

    Every training step allocates the same tensors again. With glibc's defaults their pages come fresh from the system
    each time, which the demo preset spends a quarter of its time on. Other C libraries have no such switch.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
