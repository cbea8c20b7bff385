"""Short causal convolutions over positions, one filter a channel (docs/model.md, section 12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavelet_core.look_backs import blend
from wavelet_core.state import Tree, document_positions


class ShortConvolution(nn.Module):
    """y_t = sum_j w_j x_{t-j}, j from 0 to width - 1, with a filter for every channel, as Mamba (Gu and Dao 2023) has
    them before its gates and "Canon" layers (Allen-Zhu 2025, arXiv 2512.17351) beside everything.

    residual: y_t is added to x_t, and the filters start at zero; without it they are uniform up to width^-0.5. The
    state is the last width - 1 rows. Parameter filters (width, C), the present position last.
    Shapes: (B, T, C) -> (B, T, C).
    """

    resets_at_documents = True

    def __init__(self, channels: int, width: int, residual: bool = False):
        super().__init__()
        bound = 0.0 if residual else width**-0.5
        self.filters = nn.Parameter(torch.empty(width, channels).uniform_(-bound, bound))
        self.residual = residual

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        width, channels = self.filters.shape
        return {"rows": torch.zeros(batch_size, width - 1, channels, device=device, dtype=dtype)}

    def forward(self, x: Tensor, state: Tree | None = None) -> Tensor:
        filters: Tensor = self.filters
        if self.residual:
            filters = torch.cat([filters[:-1], filters[-1:] + 1])
        history = None if state is None else state["rows"]
        return blend(x, filters.to(x.dtype), 0, history, document_positions(state))  # type: ignore[arg-type]
