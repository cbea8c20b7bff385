"""A model made ready for decoding, without a change to the model itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.computed import Computed
from wavelet_core.kernels import active_kernels
from wavelet_core.language_model import LanguageModel
from wavelet_core.state import State


def decoding_view(model: Any) -> Any:
    """The same modules once more, in evaluation mode: they share every parameter and buffer with the model's.

    What belongs to decoding is set on the view, so that the model can be trained, or decoded by others, meanwhile.
    """
    twins: dict[nn.Module, nn.Module] = {module: copy.copy(module) for module in model.modules()}
    for twin in twins.values():
        twin._modules = {name: child and twins[child] for name, child in twin._modules.items()}
        twin.training = False
    return twins[model]


class DecodingSession:
    """A view of a model for decoding: in evaluation mode, with values computed once that the weights decide.

    They are computed anew when the weights have changed. Sessions of one model do not know of each other.

    compiled: single-token passes are compiled by `torch.compile`; longer chunks, as of prompts, run as they are. The
    first token then takes as long as compiling does (a minute or more, less when torch finds it in its cache); small
    models, whose time goes into starting operations, decode several times faster from then on. Needs a C++ compiler on
    a processor. A batch whose size changes is compiled once more, for any size.
    """

    def __init__(self, model: LanguageModel, compiled: bool = False):
        self.model = decoding_view(model)
        self.config = model.config
        self.device = next(model.parameters()).device
        self.compiled = compiled
        self._computed = [
            (module, [*module.parameters(), *module.buffers()])
            for module in self.model.modules()
            if isinstance(module, Computed)
        ]
        self._computed_from: list[tuple[int, int]] | None = None
        active_kernels()  # chosen before anything is compiled or read, so that a wrong name is refused first
        self._step = torch.compile(self.model.hidden, fullgraph=True) if compiled else self.model.hidden
        self.new_state, self.head = self.model.new_state, self.model.head

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """As the model's own; `new_state` and `head` are the model's."""
        self._compute()
        hidden: Tensor = self._step(tokens, state) if tokens.shape[1] == 1 else self.model.hidden(tokens, state)
        return hidden

    def _compute(self) -> None:
        """Bring the computed values up to the weights."""
        weights = [
            (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
            for _, tensors in self._computed
            for tensor in tensors
        ]
        if weights == self._computed_from:
            return
        self._computed_from = weights
        for module, _ in self._computed:
            before, module._frozen = module._frozen, None
            value = module.compute().detach()
            alike = before is not None and (before.dtype, before.device) == (value.dtype, value.device)
            # Kept in place: a compiled step knows the tensor.
            module._frozen = before.copy_(value) if before is not None and alike else value.clone()
