"""What is under test, and how a check says what it found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from wavelet_core.state import State

BATCH, LENGTH = 5, 40
TOLERANCE = 1e-4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject(ABC):
    """A component class with one configuration, and how it is made and called.

    unused: patterns of names of parameters that may stay without a gradient. compiled_chunk: positions that it reads at
    once under the compiler.
    """

    component: type[nn.Module]
    config: Any
    kind: str
    unused: Sequence[str] = field(default=(), kw_only=True)
    compiled_chunk: ClassVar[int] = LENGTH // 2

    @abstractmethod
    def construct(self) -> nn.Module:
        """A new instance, as a model or the registry makes it."""

    @abstractmethod
    def input(self, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> Tensor:
        """A random input (BATCH, length, ...)."""

    @abstractmethod
    def altered(self, x: Tensor) -> Tensor:
        """A part of an input with other values."""

    @abstractmethod
    def state(self, module: Any, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> State:
        """A silent state; an empty one for a module that keeps none."""

    @abstractmethod
    def outputs(self, module: Any, x: Tensor, state: State | None = None) -> list[Tensor]:
        """All outputs for an input, (B, T, ...); an empty state is as good as none."""

    @abstractmethod
    def backward(self, module: Any) -> None:
        """A training pass that gives gradients to the parameters."""

    @abstractmethod
    def may_learn(self, module: nn.Module) -> bool:
        """Whether it may do something else with a state than without one: learn from what it reads."""

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

    def build(self) -> Any:
        """An instance in evaluation mode away from its initial weights, which are often zero or the identity."""
        module = self.construct()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return module.eval()

    def run(self, module: nn.Module, x: Tensor, state: State | None = None) -> Tensor:
        """All outputs side by side, (B, T, -1)."""
        return torch.cat([output.flatten(2) for output in self.outputs(module, x, state)], dim=-1)

    def stream(self, module: nn.Module, x: Tensor, state: State, lengths: list[int]) -> Tensor:
        return torch.cat([self.run(module, part, state) for part in x.split(lengths, 1)], dim=1)


Check = Callable[[Any], None]


def run_checks(subject: Subject, checks: Sequence[Check]) -> None:
    """Run checks one after the other, each from the same random numbers."""
    with torch.random.fork_rng(devices=[]):
        for check in checks:
            torch.manual_seed(0)
            check(subject)


def difference(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the values where these are above 1."""
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max() / second.abs().max().clamp(min=1))
