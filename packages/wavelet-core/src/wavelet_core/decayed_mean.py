"""A bypass whose mean forgets at rates that depend on the input (docs/model.md, section 12)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core.bypass import Bypass
from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.linear import Linear
from wavelet_core.scan import gated_scan
from wavelet_core.state import Tree, document_positions, in_document, move_on

SHORTEST = 2.0  # time scale, in positions, of the fastest channel at the start


class DecayedMeanBypass(Bypass):
    """m_t = a_t m_{t-1} + (1 - a_t) x_t with a_t = exp(-c_t exp(A) softplus(W x_t + b)), by channel, in float32: the
    selective decay of Mamba (Gu and Dao 2023, arXiv 2312.00752) on a mean.

    W starts at zero. With `longest`, c_t = 1, and the channels start with fixed time scales from 2 positions to that
    many, evenly spaced in logarithms. Without, c_t = log(1 + 1/t), which starts as the running mean; at other rates r a
    position s counts as s^(r - 1), whatever the length of the text.
    """

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["decayed_mean"] = "decayed_mean"
        longest: float | None = Field(
            None,
            ge=SHORTEST,
            le=1e9,
            description="channels start with fixed time scales from 2 to so many positions; null: as the running mean",
        )

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__(shape)
        self.fixed_clock = config.longest is not None
        self.rate = Linear(shape.width, shape.width)
        nn.init.zeros_(self.rate.weight)
        nn.init.zeros_(self.rate.bias)
        rates = torch.ones(shape.width)
        if config.longest is not None:
            rates = torch.logspace(-math.log10(SHORTEST), -math.log10(config.longest), shape.width)
        self.log_rate = nn.Parameter(torch.log(rates / math.log(2.0)))  # softplus(0) = log 2

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        state: Tree = {"average": torch.zeros(batch_size, 1, self.width, device=device)}
        if not self.fixed_clock:
            state["count"] = torch.zeros(batch_size, 1, 1, dtype=torch.int64, device=device)
        return state

    def mean(self, x: Tensor, state: Tree | None) -> Tensor:
        positions = document_positions(state)
        log_decay = -self.log_rate.float().exp() * F.softplus(self.rate(x).float())
        if not self.fixed_clock:
            log_decay = log_decay * self._clock(x, state, positions)
        inputs = torch.expm1(log_decay).neg() * x.float()
        gates = in_document(log_decay.exp(), 1, positions)
        if state is None:
            return gated_scan(gates, inputs).to(x.dtype)
        history: Any = state["average"]
        # Autograd keeps the history for the gates' gradient: a copy, because the state moves on before that.
        first = inputs[:, :1] + gates[:, :1] * history.clone()
        average = gated_scan(gates, torch.cat([first, inputs[:, 1:]], dim=1))
        move_on(history, average)
        return average.to(x.dtype)

    def _clock(self, x: Tensor, state: Tree | None, positions: Tensor | None) -> Tensor:
        """log(1 + 1/t), (1, T, 1) or (B, T, 1), for t positions before; so much at the first that nothing is kept."""
        counts = torch.arange(x.shape[1], device=x.device).view(1, -1, 1)
        if state is not None:
            read: Any = state["count"]
            counts = counts + read
            if positions is not None:
                counts = torch.minimum(counts, positions.unsqueeze(-1))
            move_on(read, counts + 1)
        return torch.where(counts > 0, (1 / counts.clamp(min=1).float()).log1p(), 1e4)
