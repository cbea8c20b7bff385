"""An exponential average of the weights over training: often a better model than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core.config import Section
from wavelet_train.parallel import assign

PREFIX = "average."


class WeightAverageConfig(Section):
    """How long the average remembers."""

    decay: float = Field(
        0.999, gt=0, lt=1, description="share of the average that an optimizer step keeps; less in the first steps"
    )


class WeightAverage:
    """Averages of a model's trained parameters, updated after every optimizer step.

    Update n keeps min(decay, (1 + n) / (10 + n)) of the average, so that the initial weights are soon forgotten.
    Buffers are not averaged.
    """

    def __init__(self, config: WeightAverageConfig, parameters: Mapping[str, nn.Parameter]):
        self.decay = config.decay
        self._parameters = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.start()

    def start(self) -> None:
        """Start from the weights as they are."""
        self._updates = torch.zeros((), dtype=torch.int64)
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are after a step into the average."""
        updates = int(self._updates)
        kept = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), 1 - kept)
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the averaged weights; after it its own, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Values are exchanged, not storages: whatever holds on to a parameter sees the change.
        for parameter, average in zip(self._parameters.values(), self._averages.values(), strict=True):
            weights = parameter.clone()
            parameter.copy_(average)
            average.copy_(weights)

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs, by name; the tensors themselves."""
        averages = {f"{PREFIX}parameters.{name}": average for name, average in self._averages.items()}
        return {f"{PREFIX}updates": self._updates, **averages}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from what is there of what `tensors` gave, which fits."""
        for name, tensor in self.tensors().items():
            if name in saved:
                assign(tensor, saved[name])
