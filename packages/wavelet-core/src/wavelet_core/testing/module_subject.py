"""A component that is an `nn.Module` under test: a part of a model, or a whole one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wavelet_core.state import State
from wavelet_core.testing.subject import Subject

BATCH, LENGTH = 5, 40
TOLERANCE = 1e-4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ModuleSubject(Subject, ABC):
    """How the module is made and called.

    unused: patterns of names of parameters that may stay without a gradient. compiled_chunk: positions that it reads at
    once under the compiler.
    """

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


def difference(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the values where these are above 1."""
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max() / second.abs().max().clamp(min=1))
