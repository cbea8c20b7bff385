"""What records of a run are given to besides `metrics.jsonl`: components of kind `logger`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is to record.

    directory: the run's own; a logger keeps its files in a folder there. configuration: the whole resolved one, as JSON
    has it. step: optimizer steps that are done already. Records of later steps, which a process that was killed may
    have left, come again; with 0 the run starts anew, whatever is there.
    """

    directory: Path
    configuration: Mapping[str, Any]
    step: int


class Logger(Protocol):
    """A component of kind `logger`, made as `(config)`, which writes nothing yet and raises ConfigurationError for what
    cannot work, such as a package that is missing.

    `start` comes before the first record, and `close` once at the end. What they and `write` raise ends the logger,
    with a warning, and never the run; only a ConfigurationError of `start` does, before the first step.
    """

    def start(self, run: LoggedRun) -> None:
        """Begin to record a run, or go on with it."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Record a line of `metrics.jsonl`: its `event`, its `step`, and numbers, texts and null, also nested."""

    def close(self) -> None:
        """Bring everything where it belongs."""


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record but for its step, by names as dashboards group them: `train/gradient_norms/mixer/0`."""
    yield from _numbers(record["event"], {key: value for key, value in record.items() if key != "step"})


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(f"{path}/{key}", entry)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _numbers(f"{path}/{index}", entry)
    elif isinstance(value, int | float):
        yield path, float(value)
