"""Short causal convolutions over positions, one filter a channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core.lifting import with_history
from wavelet_core.state import Tree


class ShortConvolution(nn.Module):
    """y_t = sum_j w_j x_{t-j}, j from 0 to width - 1, with a filter for every channel, as Mamba (Gu and Dao 2023) has
    them before its gates and "Canon" layers (Allen-Zhu 2025, arXiv 2512.17351) beside everything.

    The state is the last width - 1 rows. Parameter weight (C, width), the present position last.
    Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.width = width
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        rows = torch.zeros(batch_size, self.width - 1, len(self.weight), device=device, dtype=dtype)
        return {"rows": rows}

    def forward(self, x: Tensor, state: Tree | None = None) -> Tensor:
        history = None if state is None else state["rows"]
        extended = with_history(x, history, self.width - 1)  # type: ignore[arg-type]
        weight = self.weight.to(x.dtype)
        if x.shape[1] == 1:
            return torch.einsum("bkc,ck->bc", extended, weight).unsqueeze(1)
        return F.conv1d(extended.mT, weight.unsqueeze(1), groups=len(weight)).mT
