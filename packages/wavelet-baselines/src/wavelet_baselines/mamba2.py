"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_baselines.residual_stack import ResidualStack, ResidualStackConfig, output_projection
from wavelet_baselines.state_space_duality import state_space
from wavelet_core.linear import Linear
from wavelet_core.short_convolution import ShortConvolution
from wavelet_core.state import Tree
from wavelet_memory.gated_delta import initial_decay_rates


class Mamba2Block(nn.Module):
    """x + Mamba-2 mixer of the RMS norm of x. Shapes: (B, T, C) -> (B, T, C).

    One projection gives a gate z, the inputs x, the vectors B and C that all heads share, and a step size a head. The
    step scales both the decay and the input; D x passes the inputs by; the output is gated, normed and projected.
    """

    def __init__(self, config: Mamba2.Config):
        super().__init__()
        self.inner = round(config.expansion * config.width)
        self.head_width, self.heads = config.head_width, self.inner // config.head_width
        self.state_width = config.state_width
        self.norm = nn.RMSNorm(config.width)
        convolved = self.inner + 2 * self.state_width
        self.sizes = [self.inner, convolved, self.heads]
        self.project = Linear(config.width, sum(self.sizes), bias=False)
        self.convolution = ShortConvolution(convolved, config.convolution)
        log_rate, bias = initial_decay_rates(self.heads)
        self.log_rate, self.step_bias = nn.Parameter(log_rate), nn.Parameter(bias)
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.norm_out = nn.RMSNorm(self.inner, eps=1e-5)
        self.out = output_projection(self.inner, config.width, config.zero_outputs)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        memory = torch.zeros(batch_size, self.heads, self.head_width, self.state_width, device=device)
        return {"convolution": self.convolution.new_state(batch_size, device, dtype), "memory": memory}

    def forward(self, x: Tensor, state: Tree | None = None) -> Tensor:
        history: Any = self.new_state(len(x), x.device, x.dtype) if state is None else state
        gate, mixed, step = self.project(self.norm(x)).split(self.sizes, dim=-1)
        mixed = F.silu(self.convolution(mixed, history["convolution"]))
        values, enter, leave = mixed.split([self.inner, self.state_width, self.state_width], dim=-1)
        step = F.softplus(step.float() + self.step_bias.float())
        heads = values.float().unflatten(-1, (self.heads, self.head_width))
        with torch.autocast(x.device.type, enabled=False):
            read, memory = state_space(
                step.unsqueeze(-1) * heads,
                -self.log_rate.float().exp() * step,
                enter.float(),
                leave.float(),
                history["memory"].clone(),
            )
            read = read + self.skip.float().unsqueeze(-1) * heads
        if state is not None:
            history["memory"].copy_(memory.detach())
        out = self.norm_out((read.flatten(2) * F.silu(gate.float())).to(x.dtype))
        added: Tensor = x + self.out(out)
        return added


class Mamba2(ResidualStack):
    """Mamba-2: blocks of a selective state-space mixer, without feed-forward networks."""

    class Config(ResidualStackConfig):
        kind: Literal["mamba2"] = "mamba2"
        expansion: float = Field(2.0, gt=0, description="inner width in multiples of C")
        head_width: int = Field(64, ge=1, description="D, inner channels of a head; they divide the inner width")
        state_width: int = Field(64, ge=1, description="N, what the memory keeps of every inner channel")
        convolution: int = Field(4, ge=2, description="positions that the short convolution spans")

        @model_validator(mode="after")
        def _check_heads(self) -> Mamba2.Config:
            inner = round(self.expansion * self.width)
            if inner % self.head_width:
                raise ValueError(
                    f"head_width={self.head_width} does not divide the inner width expansion * width = {inner}; choose "
                    "a divisor of it"
                )
            return self

    def __init__(self, config: Config):
        super().__init__(config, (Mamba2Block(config) for _ in range(config.layers)))
