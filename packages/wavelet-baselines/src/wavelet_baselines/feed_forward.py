"""The feed-forward half of a block."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_baselines.residual_stack import output_projection
from wavelet_core.activations import relu_squared
from wavelet_core.linear import Linear

Activation = Literal["relu_squared", "swiglu", "gelu"]


class FeedForward(nn.Module):
    """W_2 f(W_1 x) with f(x) = relu(x)^2 (So et al. 2021), GELU, or SwiGLU: silu(W_g x) * W_1 x (Shazeer 2020).

    SwiGLU has three matrices; its hidden width is two thirds of `hidden`, so that it has as many weights as the others.
    Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(self, width: int, hidden: int, activation: Activation, zero_output: bool):
        super().__init__()
        self.activation = activation
        features = max(1, round(hidden * 2 / 3)) if activation == "swiglu" else hidden
        self.first = Linear(width, 2 * features if activation == "swiglu" else features, bias=False)
        self.last = output_projection(features, width, zero_output)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            hidden = self.first(x, gelu=True)
        elif self.activation == "swiglu":
            gate, value = self.first(x).chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = relu_squared(self.first(x))
        out: Tensor = self.last(hidden)
        return out
