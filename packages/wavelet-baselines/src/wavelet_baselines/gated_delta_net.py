"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_baselines.feed_forward import Activation
from wavelet_baselines.mixer_block import MixerBlock
from wavelet_baselines.residual_stack import ResidualStack, ResidualStackConfig, output_projection
from wavelet_core.linear import Linear
from wavelet_core.short_convolution import ShortConvolution
from wavelet_core.state import Tree
from wavelet_memory.gated_delta_rule import gated_delta_rule


def initial_decay_rates(heads: int) -> tuple[Tensor, Tensor]:
    """log A, A uniform in [1, 16], and biases whose softplus lies log-evenly in [0.001, 0.1]; (H) each.

    As Mamba-2 has them: at the start a head keeps exp(-A softplus(bias)) of its memory from position to position.
    """
    rates = torch.empty(heads).uniform_(1, 16)
    steps = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
    return rates.log(), steps + torch.log(-torch.expm1(-steps))


class GatedDeltaMixer(nn.Module):
    """The token mixer: short convolutions, the gated delta rule, and an output norm and gate. (B, T, C) -> (B, T, C).

    Queries and keys have length 1 after SiLU; queries are divided by sqrt(K).
    """

    def __init__(self, config: GatedDeltaNet.Config):
        super().__init__()
        self.heads = config.heads
        self.key_width, self.value_width = config.key_width, config.value_width
        self.sizes = [config.heads * self.key_width] * 2 + [config.heads * self.value_width]
        self.project = Linear(config.width, sum(self.sizes), bias=False)
        self.convolution = ShortConvolution(sum(self.sizes), config.convolution)
        self.controls = Linear(config.width, 2 * config.heads, bias=False)
        log_rate, bias = initial_decay_rates(config.heads)
        self.log_rate, self.step_bias = nn.Parameter(log_rate), nn.Parameter(bias)
        self.gate = Linear(config.width, config.heads * self.value_width, bias=False)
        self.norm = nn.RMSNorm(self.value_width, eps=1e-5)
        self.out = output_projection(config.heads * self.value_width, config.width, config.zero_outputs)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        memory = torch.zeros(batch_size, self.heads, self.key_width, self.value_width, device=device)
        return {"convolution": self.convolution.new_state(batch_size, device, dtype), "memory": memory}

    def forward(self, x: Tensor, state: Tree | None = None) -> Tensor:
        history: Any = self.new_state(len(x), x.device, x.dtype) if state is None else state
        mixed = F.silu(self.convolution(self.project(x), history["convolution"]))
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2).float() for part in mixed.split(self.sizes, dim=-1)
        )
        strength, step = self.controls(x).float().transpose(1, 2).chunk(2, dim=1)
        log_decay = -self.log_rate.float().exp()[:, None] * F.softplus(step + self.step_bias.float()[:, None])
        with torch.autocast(x.device.type, enabled=False):
            read, memory = gated_delta_rule(
                F.normalize(q, dim=-1) * self.key_width**-0.5,
                F.normalize(k, dim=-1),
                v,
                log_decay,
                strength.sigmoid(),
                history["memory"].clone(),
            )
        if state is not None:
            history["memory"].copy_(memory.detach())
        read = self.norm(read.transpose(1, 2).to(x.dtype)).flatten(2)
        out: Tensor = self.out(read * F.silu(self.gate(x)))
        return out


class GatedDeltaNet(ResidualStack):
    """Gated DeltaNet: blocks of a gated delta-rule mixer and a feed-forward network."""

    class Config(ResidualStackConfig):
        kind: Literal["gated_delta_net"] = "gated_delta_net"
        heads: int = Field(3, ge=1, description="heads, each with a memory of key_width x value_width")
        key_width: int = Field(64, ge=1, description="K, channels of a head's queries and keys")
        value_width: int = Field(64, ge=1, description="D, channels of a head's values")
        convolution: int = Field(4, ge=2, description="positions that the short convolutions span")
        expansion: float = Field(4.0, gt=0, description="hidden width of the feed-forward network in multiples of C")
        activation: Activation = Field("relu_squared", description="of the feed-forward network")

    def __init__(self, config: Config):
        super().__init__(config, (MixerBlock(config, GatedDeltaMixer(config)) for _ in range(config.layers)))
