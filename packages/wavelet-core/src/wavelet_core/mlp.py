"""The wide multilayer perceptron, the plainest of the memories (docs/model.md, section 6)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wavelet_core.activations import relu_squared
from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.linear import Linear


class ReluSquared(nn.Module):
    """max(x, 0)^2 of every element."""

    def forward(self, x: Tensor) -> Tensor:
        return relu_squared(x)


ACTIVATIONS = {"gelu": nn.GELU, "relu_squared": ReluSquared}


class MLP(nn.Module):
    """Linear(C, e C), activation, ..., Linear(e C, C), dropout (docs/model.md, section 6). (B, T, C) -> (B, T, C)."""

    class Config(ComponentConfig):
        kind: Literal["mlp"] = "mlp"
        expansion: int = Field(4, ge=1, description="e, hidden width in multiples of C")
        layers: int = Field(
            2,
            ge=1,
            description="hidden layers n >= 2 with activations between; 1 is two linear maps with nothing between",
        )
        activation: Literal["gelu", "relu_squared"] = Field("gelu", description="between the linear maps")
        bias: bool = Field(True, description="the linear maps have biases")
        dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of the output")
        output_scaling: bool = Field(False, description="divide the last initial weights by sqrt(e C)")
        zero_output: bool = Field(False, description="the last weights start at zero")

        @model_validator(mode="after")
        def _check_together(self) -> MLP.Config:
            if self.layers == 1 and self.activation != "gelu":
                raise ValueError(
                    f"layers=1 has nothing between its maps, but activation={self.activation!r}; use layers=2 or more"
                )
            return self

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        activation = ACTIVATIONS[config.activation] if config.layers > 1 else None
        self.gelu = activation is nn.GELU
        hidden = config.expansion * shape.width
        parts: list[nn.Module] = [Linear(shape.width, hidden, config.bias)]
        if activation is not None:
            for _ in range(config.layers - 2):
                parts += [activation(), Linear(hidden, hidden, config.bias)]
            parts.append(activation())
        last = Linear(hidden, shape.width, config.bias)
        with torch.no_grad():
            last.weight *= 0.0 if config.zero_output else 0.02
            if config.output_scaling:
                last.weight *= hidden**-0.5
            if config.bias:
                last.bias.zero_()
        self.layers = nn.Sequential(*parts, last)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = (layer for layer in self.layers if not isinstance(layer, nn.GELU))
        for layer in hidden:
            # GELU comes with the pass over the matrix.
            x = layer(x, gelu=True) if self.gelu else layer(x)
        x = last(x)
        return self.dropout(x) if self.training else x
