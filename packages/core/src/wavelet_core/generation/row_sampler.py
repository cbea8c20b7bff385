"""Drawing the tokens of one row, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wavelet_core.generation.decoders import RowSeed
from wavelet_core.generation.sampling import SamplerChain, draw
from wavelet_core.state import State


class RowSampler:
    """The samplers, their memory and the random numbers of one row, moving on with every token drawn."""

    def __init__(self, chain: SamplerChain, memory: State, seed: RowSeed, position: int = 0):
        self.chain, self.memory, self.seed, self.position = chain, memory, seed, position

    def pick(self, logits: Tensor) -> int:
        """The row's next token for the model's logits (1, V)."""
        token = draw(self.chain(logits, self.memory), [self.seed.uniform(self.position)])
        self.chain.observe(token, self.memory)
        self.position += 1
        return int(token)

    def fork(self) -> RowSampler:
        """A copy that draws the same tokens and leaves this one where it is."""
        return RowSampler(self.chain, self.memory.clone(), self.seed, self.position)
