"""The metrics of a run: one JSON object a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends lines to a `metrics.jsonl`.

    size: bytes of the file that belong to the run so far; what a killed run wrote after its last checkpoint is cut off,
    so that a resumed run leaves the lines of an uninterrupted one. 0 starts afresh.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(min(size, file.tell()))

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def write(self, **values: Any) -> None:
        """Append one line. Numbers that JSON does not have (infinity, not a number) become null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
