"""Values that are computed from parameters: anew for every use in training, once while decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Computed(nn.Module, ABC):
    """A module with a value that takes work to compute from its parameters.

    A decoding session sets `_frozen` on its own view of the module, and computes the value once for many uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: Tensor | None = None

    @abstractmethod
    def compute(self) -> Tensor:
        """The value, from the parameters."""

    def computed(self) -> Tensor:
        """The value: the frozen one while there is one."""
        return self.compute() if self._frozen is None else self._frozen
