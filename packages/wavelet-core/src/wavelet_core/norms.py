"""Norms: layer norms that hand on what the next product reads, and those with parameters for every scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def product_type(x: Tensor) -> torch.dtype:
    """The type that products of x compute in: autocast's while it is on, or else that of x."""
    device = x.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if casts else x.dtype


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` whose result is of the type that products compute in, statistics and sums as of the input.

    Shapes: (..., C) -> (..., C).
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(product_type(x))


class ScaleNorm(nn.Module):
    """A LayerNorm over channels with its own gain and bias for every scale. Shapes: (B, T, S, P) -> (B, T, S, P)."""

    def __init__(self, scales: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(scales, width))
        self.bias = nn.Parameter(torch.zeros(scales, width))

    def forward(self, z: Tensor) -> Tensor:
        normed = F.layer_norm(z.permute(2, 0, 1, 3), z.shape[-1:]).permute(1, 2, 0, 3)  # as the scales lie in memory
        return torch.addcmul(self.bias.to(z.dtype), normed.to(z.dtype), self.weight.to(z.dtype))
