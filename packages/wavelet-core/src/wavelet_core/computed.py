"""Values that are computed from parameters: anew for every use in training, once while decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Computed(nn.Module, ABC):
    """A module with a value that takes work to compute from its parameters; `frozen` does it once for many uses."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: Tensor | None = None

    @abstractmethod
    def compute(self) -> Tensor:
        """The value, from the parameters."""

    def computed(self) -> Tensor:
        """The value: the frozen one while there is one."""
        return self.compute() if self._frozen is None else self._frozen


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While this lasts, every computed value of the model is a constant: for decoding, where no weight changes."""
    modules = [module for module in model.modules() if isinstance(module, Computed)]
    for module in modules:
        module._frozen = module.compute().detach()
    try:
        yield
    finally:
        for module in modules:
            module._frozen = None
