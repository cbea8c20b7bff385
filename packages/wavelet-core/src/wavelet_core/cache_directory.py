"""Where files are kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_directory() -> Path:
    """$WAVELET_CACHE, or else ~/.cache/wavelet."""
    return Path(os.environ.get("WAVELET_CACHE") or Path.home() / ".cache" / "wavelet")
