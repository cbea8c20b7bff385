"""A mixer that mixes nothing: what a comparison puts in a mixer's place to see what it is worth."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from wavelet_core.config import ComponentConfig, ModelShape


class IdentityMixer(nn.Module):
    """No mixer: coefficients stay as they are; for ablations. Shapes: (B, T, S, P) -> (B, T, S, P)."""

    class Config(ComponentConfig):
        kind: Literal["identity"] = "identity"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()

    def forward(self, z: Tensor) -> Tensor:
        return z
