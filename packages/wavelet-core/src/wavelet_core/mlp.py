"""The wide multilayer perceptron, the plainest of the memories (docs/model.md, section 6)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.linear import Linear


class MLP(nn.Module):
    """Linear(C, e C), GELU, ..., Linear(e C, C), dropout (docs/model.md, section 6). Shapes: (B, T, C) -> (B, T, C)."""

    class Config(ComponentConfig):
        kind: Literal["mlp"] = "mlp"
        expansion: int = Field(4, ge=1, description="e, hidden width in multiples of C")
        layers: int = Field(
            2, ge=1, description="hidden layers n >= 2 with GELU between; 1 is two linear maps with nothing between"
        )
        dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of the output")
        output_scaling: bool = Field(False, description="divide the last initial weights by sqrt(e C)")

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        self.nonlinear = config.layers > 1
        hidden = config.expansion * shape.width
        parts: list[nn.Module] = [Linear(shape.width, hidden)]
        for _ in range(config.layers - 2):
            parts += [nn.GELU(), Linear(hidden, hidden)]
        if self.nonlinear:
            parts.append(nn.GELU())
        last = Linear(hidden, shape.width)
        with torch.no_grad():
            last.weight *= 0.02
            if config.output_scaling:
                last.weight *= hidden**-0.5
            last.bias.zero_()
        self.layers = nn.Sequential(*parts, last)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = (layer for layer in self.layers if not isinstance(layer, nn.GELU))
        for layer in hidden:
            x = layer(x, gelu=self.nonlinear)  # one pass over the matrix does both
        x = last(x)
        return self.dropout(x) if self.training else x
