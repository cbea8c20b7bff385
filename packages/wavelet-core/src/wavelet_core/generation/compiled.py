"""Decoding compiled by `torch.compile`: fewer and larger operations per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wavelet_core.state import State

if TYPE_CHECKING:
    from wavelet_core.model import WaveletLM


class CompiledSteps:
    """A model whose single-token passes are compiled, for `generate`; longer chunks, as of prompts, run as they are.

    The first token takes as long as compiling does (a minute or more, less when torch finds it in its cache); small
    models, whose time goes into starting operations, decode several times faster from then on. Needs a C++ compiler on
    a processor. A batch whose size changes is compiled once more, for any size.
    """

    def __init__(self, model: WaveletLM):
        self.model = model
        self._step = torch.compile(model.hidden, fullgraph=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """As the model's own."""
        hidden: Tensor = self._step(tokens, state) if tokens.shape[1] == 1 else self.model.hidden(tokens, state)
        return hidden
