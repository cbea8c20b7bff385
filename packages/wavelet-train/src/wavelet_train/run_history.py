"""What the metrics.jsonl of a run tells, also of one that is still going on, or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class RunHistory:
    """The records of a run by their events, as far as they can be read. unreadable: lines that cannot."""

    train: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    report: list[Record] = field(default_factory=list)
    other: list[Record] = field(default_factory=list)
    unreadable: int = 0

    @classmethod
    def read(cls, path: Path) -> RunHistory:
        """The history in a file; an empty one where there is none. Raises OSError where it cannot be read."""
        events: dict[str, list[Record]] = {"train": [], "validation": [], "report": [], "other": []}
        unreadable = 0
        for line in path.read_bytes().splitlines() if path.exists() else ():
            record = _record(line)
            if record is None:
                unreadable += 1
            else:
                events[record["event"] if record["event"] in events else "other"].append(record)
        return cls(**events, unreadable=unreadable)

    @property
    def steps(self) -> int:
        """The last step that is recorded, 0 without any."""
        return max((record["step"] for record in (*self.train, *self.validation)), default=0)

    def column(self, name: str, event: str = "train") -> list[float]:
        """A number of every record of an event, not-a-number where there is none."""
        return [number(record.get(name)) for record in getattr(self, event)]

    def seconds(self) -> list[float]:
        """When every record of training was, in seconds of training since the start, as its speed tells."""
        passed, before, times = 0.0, 0.0, []
        for tokens, speed in zip(self.column("tokens"), self.column("tokens_per_second"), strict=True):
            took = (tokens - before) / speed if speed > 0 else 0.0
            if math.isfinite(took) and took > 0:
                passed, before = passed + took, tokens
            times.append(passed)
        return times

    def at_steps(self, values: Sequence[float], event: str = "validation") -> list[float]:
        """Values of the records of training, such as their tokens, at the steps of another event."""
        known = dict(zip(self.column("step"), values, strict=True))
        return [known.get(step, _between(known, step)) for step in self.column("step", event)]

    def part_norms(self) -> dict[str, list[list[float]]]:
        """The gradient's norms by part: for every record of training, of each block, or of the one that there is."""
        parts: dict[str, list[list[float]]] = {}
        records = [record.get("gradient_norms") for record in self.train]
        for name in dict.fromkeys(name for norms in records if isinstance(norms, dict) for name in norms):
            entries = [norms.get(name) if isinstance(norms, dict) else None for norms in records]
            parts[name] = [
                [number(value) for value in (entry if isinstance(entry, list) else [entry])] for entry in entries
            ]
        return parts


def number(value: object) -> float:
    """A number as a float; not-a-number for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("event"), str) and type(record.get("step")) is int
    return record if whole else None


def _between(known: dict[float, float], step: float) -> float:
    """The value at a step between two that are known, as on a straight line; not-a-number beyond them."""
    before = max((other for other in known if other < step), default=None)
    after = min((other for other in known if other > step), default=None)
    if before is None or after is None:
        return math.nan
    return known[before] + (known[after] - known[before]) * (step - before) / (after - before)
