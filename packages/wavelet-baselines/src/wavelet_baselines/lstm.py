"""An LSTM in a residual stack."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_baselines.residual_stack import ResidualStack, ResidualStackConfig, output_projection
from wavelet_core.linear import Linear
from wavelet_core.state import Tree


class LSTMBlock(nn.Module):
    """x + W_o LSTM(RMS norm of x) (Hochreiter and Schmidhuber 1997, with a forget gate). (B, T, C) -> (B, T, C).

    Many positions go through torch's fused recurrence, one position or quantized matrices through the two products that
    define it.
    """

    def __init__(self, config: LSTM.Config):
        super().__init__()
        self.cells = config.cells or config.width
        self.norm = nn.RMSNorm(config.width)
        self.input = Linear(config.width, 4 * self.cells)
        self.recurrent = Linear(self.cells, 4 * self.cells, bias=False)
        self.out = output_projection(self.cells, config.width, config.zero_outputs)
        with torch.no_grad():
            self.input.bias.zero_()
            self.input.bias[self.cells : 2 * self.cells] = config.forget_bias

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        def silence() -> Tensor:
            return torch.zeros(batch_size, self.cells, device=device, dtype=dtype)

        return {"output": silence(), "cell": silence()}

    def forward(self, x: Tensor, state: Tree | None = None) -> Tensor:
        normed = self.norm(x)
        history: Any = self.new_state(len(x), x.device, normed.dtype) if state is None else state
        h, c = history["output"].clone(), history["cell"].clone()
        plain = type(self.input) is Linear and type(self.recurrent) is Linear
        if x.shape[1] > 1 and plain:
            outputs, h, c = self._fused(normed, h, c)
        else:
            outputs, h, c = self._by_position(normed, h, c)
        if state is not None:
            history["output"].copy_(h.detach())
            history["cell"].copy_(c.detach())
        added: Tensor = x + self.out(outputs)
        return added

    def _fused(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = [self.input.weight, self.recurrent.weight, self.input.bias, torch.zeros_like(self.input.bias)]
        outputs, last_h, last_c = torch.lstm(
            x.to(weights[0].dtype),
            (h.to(weights[0].dtype).unsqueeze(0), c.to(weights[0].dtype).unsqueeze(0)),
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=True,
        )
        return outputs, last_h.squeeze(0), last_c.squeeze(0)

    def _by_position(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for entering in self.input(x).unbind(1):
            enter, forget, new, leave = (entering + self.recurrent(h.to(entering.dtype))).chunk(4, dim=-1)
            c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
            h = leave.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), h, c


class LSTM(ResidualStack):
    """LSTM layers, each behind an RMS norm, with a projection into the residual stream."""

    class Config(ResidualStackConfig):
        kind: Literal["residual_lstm"] = "residual_lstm"
        cells: int | None = Field(None, ge=1, description="memory cells of a layer; null: as many as model.width")
        forget_bias: float = Field(1.0, description="what the forget gates' biases start at (Jozefowicz et al. 2015)")

    def __init__(self, config: Config):
        super().__init__(config, (LSTMBlock(config) for _ in range(config.layers)))
