"""What is under test, and how a check says what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch


@dataclass(frozen=True)
class Subject:
    """A component class with one configuration."""

    component: type[Any]
    config: Any
    kind: str

    def fail(self, found: str, remedy: str) -> NoReturn:
        kind = getattr(self.config, "kind", None)
        raise AssertionError(f"{self.component.__qualname__} ({self.kind} {kind!r}) {found}\n  -> {remedy}")

    @contextmanager
    def expecting(self, doing: str, remedy: str) -> Iterator[None]:
        """Turn an exception into a failure that says what was being done and what to change."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:3])
            self.fail(f"failed {doing}: {type(error).__name__}: {reason}", remedy)


Check = Callable[[Any], None]


def run_checks(subject: Subject, checks: Sequence[Check]) -> None:
    """Run checks one after the other, each from the same random numbers."""
    with torch.random.fork_rng(devices=[]):
        for check in checks:
            torch.manual_seed(0)
            check(subject)
