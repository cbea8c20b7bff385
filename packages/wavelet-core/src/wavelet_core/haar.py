"""The fixed causal Haar wavelet (docs/model.md, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.lifting import SQRT_HALF, FixedDelay, silent_history
from wavelet_core.state import Tree


class HaarWavelet(nn.Module):
    """The undecimated causal Haar wavelet; it has no parameters (docs/model.md, section 3).

    c_{k+1} and d_k are (c_k plus, minus its copy 2^k positions ago) / sqrt(2); reconstruction is
    (c_{k+1} + d_k) / sqrt(2).
    Shapes: decompose (B, T, P) -> (B, T, S, P), coarse to fine; reconstruct the other way round.
    """

    class Config(ComponentConfig):
        kind: Literal["haar"] = "haar"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        self.shape = shape
        self.delay = FixedDelay()

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        """The last 2^k rows of level k's input."""
        return silent_history(self.delay, self.shape, batch_size, device, dtype)

    def decompose(self, rows: Tensor, state: Tree | None = None) -> Tensor:
        """Wavelet coefficients (B, T, S, P) of (B, T, P), coarse to fine."""
        details = []
        for level in range(self.shape.levels):
            past = self.delay(rows, level, None if state is None else state[f"level{level}"])
            details.append((rows - past) * SQRT_HALF)
            rows = (rows + past) * SQRT_HALF
        return torch.stack([rows, *reversed(details)], dim=2)

    def reconstruct(self, coefficients: Tensor) -> Tensor:
        """The rows (B, T, P) that coefficients (B, T, S, P) stand for."""
        rows, *details = coefficients.unbind(2)
        for detail in details:
            rows = (rows + detail) * SQRT_HALF
        return rows
