"""Gated spectral mixers: one channel mixer a scale, in the transform's space (docs/model.md, section 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core.activations import silu_product
from wavelet_core.config import ComponentConfig, ModelConfig, ModelShape
from wavelet_core.diagnostics import Diagnostic, scale_names
from wavelet_core.linear import Linear, StackedLinear
from wavelet_core.norms import ScaleNorm
from wavelet_core.parametrizations import PARAMETRIZATIONS, Parametrization

NOISE = 1e-3
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "relu": F.relu,
}


class MixerOptions(ComponentConfig):
    """What every gated spectral mixer can be told."""

    rank: int = Field(4, ge=0, description="rank of the additive U V^T term; 0 leaves it out")
    gate: Literal["silu", "sigmoid", "gelu", "relu"] | None = Field(
        "silu", description="activation of the multiplicative gate; null for no gate"
    )
    parametrization: Parametrization = Field(
        "direct", description="the mixing matrix as it is, divided by its largest singular value, or exp of a matrix"
    )
    noise_scaling: bool = Field(False, description="divide the initial noise of the mixing matrix by sqrt(width)")


class MixerBank(nn.Module):
    """Mixers of equal width for several scales, as batched products.

    out_n = (M_n z_n) * act(G_n gate_input_n) + U_n (V_n^T z_n) for every scale n of the bank; with a bias b_n added
    where asked. When the mixers' width w differs from P, one Linear(P, w) a scale leads in, another out.

    scales: which n scales these are, 0 the coarsest. Shapes: z and gate_input (n, N, P) -> (n, N, P), N positions.
    """

    def __init__(
        self,
        options: MixerOptions,
        scales: Sequence[int],
        width: int,
        padded_width: int,
        noise: float = NOISE,
        bias: bool = False,
    ):
        super().__init__()
        count = len(scales)
        self.activation = None if options.gate is None else ACTIVATIONS[options.gate]
        noise = noise * width**-0.5 if options.noise_scaling else noise
        self.matrix = PARAMETRIZATIONS[options.parametrization](count, width, noise)
        self.gate = None if options.gate is None else StackedLinear(count, width, width, std=0.02)
        self.down = self.up = self.bias = self.narrow = self.widen = None
        if options.rank:
            self.down = StackedLinear(count, width, options.rank, std=0.01)
            self.up = StackedLinear(count, options.rank, width, std=0.01)
        if bias:
            self.bias = nn.Parameter(torch.zeros(count, 1, width))
        if width != padded_width:
            self.narrow = StackedLinear(count, padded_width, width)
            self.widen = StackedLinear(count, width, padded_width)
        for stack in self.children():
            stack.scales = tuple(scales)  # type: ignore[assignment]

    def openness(self, gate_input: Tensor) -> Tensor:
        """How far the gates are open, (n, w): the mean of sigmoid(G_n gate_input_n) over the positions."""
        inner = gate_input if self.narrow is None else self.narrow(gate_input)
        opened: Tensor = self.gate(inner)  # type: ignore[misc]
        return opened.float().sigmoid().mean(1)

    def forward(self, z: Tensor, gate_input: Tensor) -> Tensor:
        narrow, widen, gate, down, up = self.narrow, self.widen, self.gate, self.down, self.up
        if narrow is not None:
            own_input = gate_input is z
            z = narrow(z)
            gate_input = z if own_input else narrow(gate_input)
        out = self.matrix(z)
        if gate is not None and self.activation is not None:
            opened = gate(gate_input)
            out = silu_product(out, opened) if self.activation is F.silu else out * self.activation(opened)
        if down is not None and up is not None:
            out = out + up(down(z))
        if self.bias is not None:
            out = out + self.bias
        return out if widen is None else widen(out)


def scales_first(z: Tensor) -> Tensor:
    """(B, T, S, P) -> (S, B T, P), without a copy where the scales come first in memory."""
    return z.permute(2, 0, 1, 3).flatten(1, 2)


def scales_last(z: Tensor, like: Tensor) -> Tensor:
    """(S, B T, P) -> the shape of `like`, (B, T, S, P), without a copy."""
    return z.unflatten(1, like.shape[:2]).permute(1, 2, 0, 3)


class ScaleRouting(nn.Module):
    """The gate of scale s reads sum_s' R[s, s'] z_s' instead of z_s; R starts at the identity.

    Shapes: (S, N, P) -> (S, N, P).
    """

    def __init__(self, scales: int):
        super().__init__()
        with torch.device("meta"):  # draws no random numbers
            self.mix = Linear(scales, scales, bias=False)
        self.mix.weight = nn.Parameter(torch.eye(scales))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tensordot(self.mix.matrix().to(z.dtype), z, dims=1)


class GatedSpectralMixer(nn.Module):
    """One gated mixer per scale (docs/model.md, section 5).

    out_s = (M_s z_s) * act(G_s gate_s) + U_s (V_s^T z_s), with gate_s = z_s or, with `routing`, a learned blend of all
    scales. `widths` gives every scale its own mixer width as a share of P; scales of equal width are one batched
    product.

    Shapes: (B, T, S, P) -> (B, T, S, P).
    """

    class Config(MixerOptions):
        kind: Literal["gated_spectral"] = "gated_spectral"
        routing: bool = Field(False, description="gates read a learned blend of all scales (cross-scale gating)")
        widths: list[float] | None = Field(
            None, description="mixer width of each scale, coarse to fine, as a share of P; null for P everywhere"
        )

        def check(self, model: ModelConfig) -> None:
            if self.routing and self.gate is None:
                raise ValueError("routing=true feeds the gates, but gate=null has none; set one of the two")
            if self.widths is None:
                return
            if len(self.widths) != model.levels + 1:
                raise ValueError(
                    f"widths has {len(self.widths)} entries, but model.levels={model.levels} makes "
                    f"{model.levels + 1} scales; give one width per scale"
                )
            if not all(share > 0 for share in self.widths):
                raise ValueError(f"widths={self.widths} must all be above 0: each is a share of the padded model.width")

        def resolved_widths(self, shape: ModelShape) -> list[int]:
            """Every scale's mixer width in channels."""
            shares = self.widths or [1.0] * shape.scales
            return [max(1, int(shape.padded_width * share)) for share in shares]

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        widths = config.resolved_widths(shape)
        self.routing = ScaleRouting(shape.scales) if config.routing else None
        self.members = [[s for s in range(shape.scales) if widths[s] == width] for width in dict.fromkeys(widths)]
        self.banks = nn.ModuleList(
            MixerBank(config, scales, widths[scales[0]], shape.padded_width) for scales in self.members
        )
        order = [scale for scales in self.members for scale in scales]
        self.restore = [order.index(scale) for scale in range(shape.scales)]

    def diagnose(self, z: Tensor) -> Iterator[Diagnostic]:
        gates = scales_first(z)
        if self.routing is not None:
            gates = self.routing(gates)
            names = scale_names(len(gates))
            yield Diagnostic(
                "Routing between scales",
                self.routing.mix.matrix(),
                ("scale that is gated", "scale that its gate reads"),
                "weight",
                (names, names),
                explanation="Row by row, of what the gate of a scale is made; it starts as the identity.",
            )
        if self.banks[0].gate is not None:
            banks = zip(self.members, self.banks, strict=True)
            openness = [bank.openness(select_scales(gates, members)) for members, bank in banks]  # type: ignore[operator]
            order = [scale for members in self.members for scale in members]
            yield gate_diagnostic([row for rows in openness for row in rows], order)

    def forward(self, z: Tensor) -> Tensor:
        scales = scales_first(z)
        gates = scales if self.routing is None else self.routing(scales)
        if len(self.banks) == 1:
            return scales_last(self.banks[0](scales, gates), z)
        mixed = []
        for members, bank in zip(self.members, self.banks, strict=True):
            own = select_scales(scales, members)
            mixed.append(bank(own, own if gates is scales else select_scales(gates, members)))
        return scales_last(select_scales(torch.cat(mixed), self.restore), z)


def gate_diagnostic(openness: Sequence[Tensor], order: Sequence[int]) -> Diagnostic:
    """How far the gates of every scale are open; `openness` has one row (w) for each scale, in the order of `order`."""
    values = torch.full((len(order), max(len(row) for row in openness)), math.nan)
    for scale, row in zip(order, openness, strict=True):
        values[scale, : len(row)] = row
    return Diagnostic(
        "Gates: how far they are open",
        values,
        ("scale", "channel of the mixer"),
        "mean sigmoid",
        (scale_names(len(order)), None),
        explanation="The sigmoid of what opens a gate, averaged over the text: at 0 it is closed, at 1 open. Without a "
        "narrower mixer, channels are those of the transform.",
    )


def select_scales(scales: Tensor, members: list[int]) -> Tensor:
    """Some scales of (S, N, P); a view where they are neighbours."""
    first = members[0]
    if members == list(range(first, first + len(members))):
        return scales[first : first + len(members)]
    return scales[members]


class DeepGatedSpectralMixer(nn.Module):
    """Several gated mixers a scale, one after the other (docs/model.md, section 5, depth).

    Step d < D - 1: per-scale LayerNorm (times beta_d with stabilizers), then a mixer with a bias (times alpha_d);
    plus the step's input with residuals. The last step is a mixer without norm or bias. Each gate reads its own
    mixer's input. Shapes: (B, T, S, P) -> (B, T, S, P).
    """

    class Config(MixerOptions):
        kind: Literal["deep_gated_spectral"] = "deep_gated_spectral"
        depth: int = Field(2, ge=2, description="D, mixers one after the other")
        stabilizers: bool = Field(
            False, description="learned scalars alpha_d, beta_d starting at 1 / D, and initial noise 1e-3 / (d + 1)"
        )
        residuals: bool = Field(False, description="every step adds its input to its output")

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        width, scales, depth = shape.padded_width, shape.scales, config.depth
        self.residuals = config.residuals
        self.norms = nn.ModuleList(ScaleNorm(scales, width) for _ in range(depth - 1))
        self.banks = nn.ModuleList(
            MixerBank(
                config,
                range(scales),
                width,
                width,
                NOISE / (step + 1) if config.stabilizers else NOISE,
                bias=step < depth - 1,
            )
            for step in range(depth)
        )
        self.alpha = self.beta = None
        if config.stabilizers:
            self.alpha = nn.Parameter(torch.full((depth - 1,), 1 / depth))
            self.beta = nn.Parameter(torch.full((depth - 1,), 1 / depth))

    def forward(self, z: Tensor) -> Tensor:
        for step, bank in enumerate(self.banks):
            inner = z
            if step < len(self.norms):
                inner = self.norms[step](inner)
                if self.beta is not None:
                    inner = self.beta[step] * inner
            inner = scales_first(inner)
            mixed = scales_last(bank(inner, inner), z)
            if step < len(self.norms) and self.alpha is not None:
                mixed = self.alpha[step] * mixed
            z = z + mixed if self.residuals else mixed
        return z
