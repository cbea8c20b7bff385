"""The decompose bypass: a long-range mean that reaches every scale directly (docs/model.md, section 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.diagnostics import Diagnostic, scale_names
from wavelet_core.linear import Linear
from wavelet_core.norms import product_type
from wavelet_core.scan import gated_scan
from wavelet_core.state import Tree, document_positions, in_document, move_on


class Bypass(nn.Module, ABC):
    """A causal mean of the block's input, mixed with the previous block's, given to every scale with its own gain.

    g = m + W_x previous_mean; scale s receives g * eta_s. Shapes: x (B, T, C); previous_mean (B, T, C), (B, 1, C) or
    None; returns the bias (B, T, S, C) and the mean m (B, T, C). Subclasses say which mean.
    """

    def __init__(self, shape: ModelShape):
        super().__init__()
        self.width = shape.width
        self.gains = nn.Parameter(torch.zeros(shape.scales, shape.width))
        self.cross_layer = Linear(shape.width, shape.width, bias=False)
        with torch.no_grad():
            self.cross_layer.weight.copy_(0.5 * torch.eye(shape.width))

    def diagnose(self, *inputs: Any) -> Iterator[Diagnostic]:
        yield Diagnostic(
            "Bypass: what each scale takes of it",
            self.gains.float().square().mean(-1).sqrt(),
            ("scale",),
            "root mean square of the gains",
            (scale_names(len(self.gains)),),
            explanation="The gain of the long-range mean, over the channels; it starts at 0.",
        )

    @abstractmethod
    def mean(self, x: Tensor, state: Tree | None) -> Tensor:
        """The causal mean (B, T, C) of x (B, T, C), going on from the state."""

    def forward(
        self, x: Tensor, previous_mean: Tensor | None = None, state: Tree | None = None
    ) -> tuple[Tensor, Tensor]:
        mean = self.mean(x, state).to(product_type(x))
        bias = mean if previous_mean is None else mean + self.cross_layer(previous_mean)
        by_scale = self.gains.to(bias.dtype)[:, None, None] * bias  # one scale after the other in memory
        return by_scale.permute(1, 2, 0, 3), mean


class RunningMeanBypass(Bypass):
    """m_t is the mean of x_0 .. x_t, accumulated in float32."""

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["running_mean"] = "running_mean"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__(shape)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        return {
            "sum": torch.zeros(batch_size, 1, self.width, device=device),
            "count": torch.zeros(batch_size, 1, 1, dtype=torch.int64, device=device),
        }

    def mean(self, x: Tensor, state: Tree | None) -> Tensor:
        positions = document_positions(state)
        rows = x.float()
        counts = torch.arange(1, x.shape[1] + 1, device=x.device).view(1, -1, 1)
        if state is None:
            sums = rows.cumsum(1)
        else:
            history: Any = state["sum"]
            read: Any = state["count"]
            counts = counts + read
            if positions is None:
                sums = rows.cumsum(1) + history
            else:
                goes_on = in_document(torch.ones_like(rows[..., :1]), 1, positions)
                first = rows[:, :1] + goes_on[:, :1] * history
                sums = gated_scan(goes_on, torch.cat([first, rows[:, 1:]], dim=1))
                counts = torch.minimum(counts, positions.unsqueeze(-1) + 1)
            move_on(history, sums)
            move_on(read, counts)
        return (sums / counts).to(x.dtype)


class ExponentialMovingAverageBypass(Bypass):
    """m_t = a_t * m_{t-1} + (1 - a_t) * x_t with the data-dependent gate a_t = sigmoid(W x_t + b), in float32."""

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["ema"] = "ema"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__(shape)
        self.gate = Linear(shape.width, shape.width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        return {"average": torch.zeros(batch_size, 1, self.width, device=device)}

    def mean(self, x: Tensor, state: Tree | None) -> Tensor:
        gates = self.gate(x).float().sigmoid()
        inputs = (1 - gates) * x.float()
        if state is None:
            return gated_scan(gates, inputs).to(x.dtype)
        gates = in_document(gates, 1, document_positions(state))
        history: Any = state["average"]
        # Autograd keeps the history for the gates' gradient: a copy, because the state moves on before that.
        first = inputs[:, :1] + gates[:, :1] * history.clone()
        average = gated_scan(gates, torch.cat([first, inputs[:, 1:]], dim=1))
        move_on(history, average)
        return average.to(x.dtype)
