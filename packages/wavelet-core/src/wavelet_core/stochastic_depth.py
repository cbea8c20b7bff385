"""Stochastic depth: training passes that leave blocks out (docs/model.md, section 1; Huang et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Decides for every training pass which blocks it leaves out: block l of n with probability rate * l / n.

    The decisions are a hash of a seed and of the number of passes so far, both buffers that checkpoints hold: a resumed
    run goes on with them, processes that start alike decide alike, no other random number is touched, and there is no
    generator that `torch.compile` could not trace.
    """

    seed: Tensor
    passes: Tensor

    def __init__(self, rate: float, layers: int, loop_iterations: int):
        super().__init__()
        self.rate, self.layers, self.loop_iterations = rate, layers, loop_iterations
        self.register_buffer("seed", torch.randint(1 << 31, ()))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        """Whether each application of a block is kept in the next pass, (layers * loop_iterations), bool."""
        self.passes += 1
        places = torch.arange(self.layers * self.loop_iterations, device=self.passes.device)
        bits = _scramble(_scramble(_scramble(self.seed) ^ self.passes) ^ places)
        return bits >= places % self.layers * (self.rate / self.layers) * 2.0**31


def _scramble(bits: Tensor) -> Tensor:
    """A hash of whole numbers below 2^31, by rounds of shifts and odd factors; no product leaves 63 bits."""
    for factor in (0x2C1B3C6D, 0x297A2D39, 0x7FEB352D):
        bits = ((bits ^ (bits >> 15)) * factor) & 0x7FFFFFFF
    return bits ^ (bits >> 16)
