"""Norms with parameters for every scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ScaleNorm(nn.Module):
    """A LayerNorm over channels with its own gain and bias for every scale. Shapes: (B, T, S, P) -> (B, T, S, P)."""

    def __init__(self, scales: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(scales, width))
        self.bias = nn.Parameter(torch.zeros(scales, width))

    def forward(self, z: Tensor) -> Tensor:
        return F.layer_norm(z, z.shape[-1:]) * self.weight + self.bias
