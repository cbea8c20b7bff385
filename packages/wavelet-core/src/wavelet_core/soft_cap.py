"""Logits that stay between two bounds (Gemma 2: arXiv 2408.00118)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavelet_core.linear import Linear


class SoftCappedHead(nn.Module):
    """cap * tanh(x W^T / cap). Shapes: (..., C) -> (..., V)."""

    def __init__(self, linear: Linear, cap: float):
        super().__init__()
        self.linear, self.cap = linear, cap

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) / self.cap) * self.cap
