"""Gated delta memory: fast weights that are trained through (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.linear import Linear
from wavelet_core.short_convolution import ShortConvolution
from wavelet_core.state import Tree, document_positions
from wavelet_memory.gated_delta_rule import CHUNK, gated_delta_rule

SHORTEST, LONGEST = 1e-3, 1e-1  # steps that decay rates are multiplied by at the start
# exp(FORGOTTEN) of a memory is below the resolution of float32, and sums of logarithms as large are still exact enough.
FORGOTTEN = -50.0
LENGTH_EPS, NORM_EPS = 1e-10, 1e-5  # added to mean squares of queries and keys, and of what is read


def initial_decay_rates(heads: int) -> tuple[Tensor, Tensor]:
    """log A, A uniform in [1, 16], and biases whose softplus lies log-evenly between the steps; (H) each.

    As Mamba-2 has them: at the start a head keeps exp(-A softplus(bias)) of its memory from position to position.
    """
    rates = torch.empty(heads).uniform_(1, 16)
    steps = torch.exp(torch.empty(heads).uniform_(math.log(SHORTEST), math.log(LONGEST)))
    return rates.log(), _softplus_inverse(steps)


def _softplus_inverse(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


class GatedDeltaMemory(nn.Module):
    """Heads that each keep a matrix from keys to values, which forgets and corrects itself at every position.

    Queries, keys and values are linear maps of q, through a short convolution and SiLU; queries and keys are then
    brought to length 1, and queries divided by sqrt(K). The strength of a correction and the decay are functions of the
    same q. What is read is normed by its root mean square in each head, multiplied by SiLU(gate) and projected.

    Shapes: q (B, T, C) -> (B, T, C). A row's state: H K D numbers in float32 and the convolution's rows.
    """

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["gated_delta"] = "gated_delta"
        heads: int = Field(4, ge=1, description="H, heads, each with a matrix of key_width x value_width")
        key_width: int = Field(32, ge=1, description="K, channels of a head's queries and keys")
        value_width: int = Field(32, ge=1, description="D, channels of a head's values")
        chunk_size: int = Field(CHUNK, ge=1, le=4096, description="positions computed at once; changes no number")
        convolution: int | None = Field(
            4, ge=2, le=64, description="positions that short convolutions of queries, keys and values span; null: none"
        )
        decay: bool = Field(True, description="a head forgets, at a rate that depends on the input")
        output_norm: bool = Field(True, description="divide what a head reads by its root mean square")
        output_gate: bool = Field(True, description="multiply what is read by a function of a linear map of the input")
        gate_activation: Literal["silu", "sigmoid"] = Field("silu", description="that function")
        start: Literal["random", "induction"] = Field(
            "random",
            description="initial weights; with induction queries find what followed the same input, which needs a "
            "convolution",
        )
        zero_output: bool = Field(True, description="the output projection starts at zero")

        @model_validator(mode="after")
        def _check_start(self) -> GatedDeltaMemory.Config:
            if self.start == "induction" and self.convolution is None:
                raise ValueError("start=induction needs a convolution, through which keys see the position before")
            return self

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        self.heads, self.key_width, self.value_width = config.heads, config.key_width, config.value_width
        self.chunk_size = config.chunk_size
        values = config.heads * config.value_width
        # What one linear map gives: what is convolved (queries, keys, values), the gate, strengths, decays.
        self.convolved = 2 * config.heads * config.key_width + values
        self.sizes = [
            self.convolved,
            values if config.output_gate else 0,
            config.heads,
            config.heads if config.decay else 0,
        ]
        self.project = Linear(shape.width, sum(self.sizes), bias=False)
        self.convolution = None
        if config.convolution is not None:
            self.convolution = ShortConvolution(self.convolved, config.convolution)
        self.log_rate = self.step_bias = None
        if config.decay:
            log_rate, step_bias = initial_decay_rates(config.heads)
            self.log_rate, self.step_bias = nn.Parameter(log_rate), nn.Parameter(step_bias)
        self.gain = nn.Parameter(torch.ones(config.value_width)) if config.output_norm else None
        self.gate = getattr(F, config.gate_activation) if config.output_gate else None
        self.out = Linear(values, shape.width, bias=False)
        if config.zero_output:
            nn.init.zeros_(self.out.weight)
        if config.start == "induction":
            self._start_as_induction()

    @torch.no_grad()
    def _start_as_induction(self) -> None:
        """A query reads the value that followed the same input, up to about a thousand positions before.

        Queries and keys are one map, keys a position late, and heads forget as slowly as any does at the start.
        """
        assert self.convolution is not None
        keyed, filters = self.heads * self.key_width, self.convolution.filters
        self.project.weight[:keyed] = self.project.weight[keyed : 2 * keyed]
        filters.zero_()
        filters[-1] = 1
        filters[-1, keyed : 2 * keyed], filters[-2, keyed : 2 * keyed] = 0, 1
        if self.log_rate is not None and self.step_bias is not None:
            self.log_rate.zero_()
            self.step_bias.copy_(_softplus_inverse(torch.full_like(self.step_bias, SHORTEST)))

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        precise = torch.promote_types(dtype, torch.float32)
        sizes = (batch_size, self.heads, self.key_width, self.value_width)
        state: Tree = {"memory": torch.zeros(sizes, device=device, dtype=precise)}
        if self.convolution is not None:
            state["convolution"] = self.convolution.new_state(batch_size, device, dtype)
        return state

    def forward(self, q: Tensor, state: Tree | None = None) -> Tensor:
        history: Any = self.new_state(len(q), q.device, q.dtype) if state is None else state
        precise = history["memory"].dtype
        mixed, gate, strength, step = self.project(q).split(self.sizes, dim=-1)
        if self.convolution is not None:
            mixed = self.convolution(mixed, None if state is None else history["convolution"])
        mixed = F.silu(mixed)
        keyed = self.heads * self.key_width
        pairs = mixed[..., : 2 * keyed].to(precise).unflatten(-1, (2, self.heads, self.key_width))
        with torch.autocast(q.device.type, enabled=False):
            queries, keys = F.rms_norm(pairs, pairs.shape[-1:], eps=LENGTH_EPS).permute(2, 0, 3, 1, 4)
            read, memory = gated_delta_rule(
                queries * (1 / self.key_width),
                keys * self.key_width**-0.5,
                mixed[..., 2 * keyed :].to(precise).unflatten(-1, (self.heads, self.value_width)).transpose(1, 2),
                self._log_decay(step.to(precise).transpose(1, 2), document_positions(state)),
                strength.to(precise).transpose(1, 2).sigmoid(),
                history["memory"].clone(),
                self.chunk_size,
            )
            read = read.transpose(1, 2)
            if self.gain is not None:
                read = F.rms_norm(read, read.shape[-1:], self.gain.to(precise), eps=NORM_EPS)
        if state is not None:
            history["memory"].copy_(memory.detach())
        read = read.to(mixed.dtype).flatten(2)
        out: Tensor = self.out(read if self.gate is None else read * self.gate(gate))
        return out

    def _log_decay(self, step: Tensor, positions: Tensor | None) -> Tensor:
        """The logarithm of what each position keeps of the memory, (B, H, T)."""
        if self.log_rate is None or self.step_bias is None:
            decay = step.new_zeros(len(step), self.heads, step.shape[2])
        else:
            rate = self.log_rate.to(step.dtype).exp()[:, None]
            decay = -rate * F.softplus(step + self.step_bias.to(step.dtype)[:, None])
        return decay if positions is None else decay.masked_fill((positions == 0).unsqueeze(1), FORGOTTEN)
