"""A model made ready for decoding, without a change to the model itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from wavelet_core.computed import Computed
from wavelet_core.generation.replayed_step import ReplayedSteps
from wavelet_core.kernels import active_kernels
from wavelet_core.language_model import LanguageModel
from wavelet_core.state import State

if TYPE_CHECKING:
    from wavelet_core.generation.compiled_step import CompiledStep


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

    steps: compiled steps by the number of texts that they are for, as `load_steps` finds them; other numbers, and
    longer chunks, as of prompts, are computed as they are. replay: under `torch.inference_mode`, on a processor, record
    the steps of a state that takes several of them and replay them, with the same numbers (replayed_step.py).
    """

    def __init__(self, model: LanguageModel, replay: bool = True):
        self.model = decoding_view(model)
        self.config = model.config
        self.device = next(model.parameters()).device
        self.steps: Mapping[int, CompiledStep] = {}
        self._computed = [
            (module, [*module.parameters(), *module.buffers()])
            for module in self.model.modules()
            if isinstance(module, Computed)
        ]
        self._computed_from: list[tuple[int, int]] | None = None
        self._replayed = ReplayedSteps(self) if replay else None
        active_kernels()  # chosen before anything is compiled or read, so that a wrong name is refused first
        self.new_state, self.head = self.model.new_state, self.model.head

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """As the model's own; `new_state` and `head` are the model's."""
        self.compute()
        hidden: Tensor = self.model.hidden(tokens, state)
        return hidden

    def next_logits(self, tokens: Tensor, state: State) -> Tensor:
        """The logits (B, V) after one more token of every text, tokens (B,); the state moves on."""
        self.compute()
        if (step := self.steps.get(len(tokens))) is not None:
            return step(tokens, state)
        if self._replayed is not None and self._replayed.apply(state):
            return self._replayed.next_logits(tokens, state)
        return self.step_as_it_is(tokens, state)

    def is_replayed(self, state: State) -> bool:
        """Whether the next step of a state will be a replayed one."""
        return self._replayed is not None and state.batch_size not in self.steps and self._replayed.is_ready(state)

    def step_as_it_is(self, tokens: Tensor, state: State) -> Tensor:
        """`next_logits` by the model itself, with its computed values as they are."""
        logits: Tensor = self.head(self.model.hidden(tokens.unsqueeze(1), state)[:, 0])
        return logits

    def compute(self) -> None:
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
