"""Two mixers for WaveletLM: one gain per channel, and nothing at all."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core import ComponentConfig, ModelShape


class DiagonalMixer(nn.Module):
    """One learned gain for every channel of every scale, where the usual mixer has a matrix.

    In Walsh-Hadamard space a diagonal is a convolution over the channels' bit patterns, so channels are still mixed,
    at a cost of P instead of P x P multiplications per scale.

    Shapes: z (B, T, S, P) -> (B, T, S, P). Parameters: gain (S, P), or (1, P) with `shared_scales`.
    """

    class Config(ComponentConfig):
        kind: Literal["diagonal"] = "diagonal"
        initial_gain: float = Field(1.0, gt=0, description="value of every gain before training")
        shared_scales: bool = Field(False, description="all scales use the same gains")

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        scales = 1 if config.shared_scales else shape.scales
        self.gain = nn.Parameter(torch.full((scales, shape.padded_width), config.initial_gain))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.gain


class IdentityMixer(nn.Module):
    """No mixing and no parameters: what a mixer is to be compared with.

    Shapes: z (B, T, S, P) -> (B, T, S, P).
    """

    class Config(ComponentConfig):
        kind: Literal["identity_mixer"] = "identity_mixer"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()

    def forward(self, z: Tensor) -> Tensor:
        return z
