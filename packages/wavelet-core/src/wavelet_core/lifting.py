"""The learned causal lifting wavelet, undecimated: every level keeps all positions (docs/model.md, section 3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wavelet_core.computed import Computed
from wavelet_core.config import ComponentConfig, ModelConfig, ModelShape
from wavelet_core.diagnostics import Diagnostic
from wavelet_core.fused_lifting import SQRT_HALF, fused_decompose, fused_reconstruct
from wavelet_core.linear import Linear, are_plain
from wavelet_core.look_backs import blend, with_history
from wavelet_core.norms import product_type
from wavelet_core.state import Tree, document_positions, in_document
from wavelet_core.training_kernel import TrainingKernel, training_kernel

SMALLEST_FUSED = 1 << 12  # entries of the rows; below, torch's functions have ended before a kernel starts
SQRT_TWO = math.sqrt(2.0)


def scales_together(scales: list[Tensor]) -> Tensor:
    """The scales, S of (B, T, P), as one (B, T, S, P) in which every scale lies in one piece of memory."""
    return torch.stack(scales).permute(1, 2, 0, 3)


def scales_apart(coefficients: Tensor) -> tuple[Tensor, ...]:
    """The scales of (B, T, S, P), S of (B, T, P), whose gradients come back as one in which the scales come first."""
    return coefficients.movedim(2, 0).unbind()


class FixedDelay(nn.Module):
    """past_t = c_{t - 2^k}: the plain dilated look-back of level k. Shapes: (B, T, P) -> (B, T, P)."""

    def reach(self, level: int) -> int:
        """The oldest position that level k reads, counted back from the present one."""
        return 1 << level

    nearest = reach

    def forward(
        self, rows: Tensor, level: int, history: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        past = with_history(rows, history, self.reach(level))[:, : rows.shape[1]]
        return in_document(past, self.reach(level), positions)


class WaveletCrawl(Computed):
    """past_t = sum_j softmax(theta_k)_j c_{t - o_kj}: a learned blend of K consecutive look-backs a level.

    The offsets o_k0, o_k1, ... start at max(1, 2^k - K // 2); theta (L, K) is 5 at the offset 2^k and 0 elsewhere, so
    that every level starts close to its dyadic delay. Shapes: (B, T, P) -> (B, T, P).
    """

    def __init__(self, levels: int, size: int):
        super().__init__()
        self.size = size
        theta = torch.zeros(levels, size)
        for level in range(levels):
            theta[level, (1 << level) - self.nearest(level)] = 5.0
        self.theta = nn.Parameter(theta)

    def nearest(self, level: int) -> int:
        return max(1, (1 << level) - self.size // 2)

    def reach(self, level: int) -> int:
        """The oldest position that level k reads, counted back from the present one."""
        return self.nearest(level) + self.size - 1

    def compute(self) -> Tensor:
        """The weights (L, K) of every level's look-backs, the furthest first."""
        return self.theta.softmax(-1).flip(-1)

    def diagnostic(self) -> Diagnostic:
        """The weights of every level's look-backs, the nearest first."""
        weights = self.compute().flip(-1)
        levels = range(len(weights))
        return Diagnostic(
            "Crawl: how far back each level looks",
            weights,
            ("level", "look-back"),
            "weight",
            (
                [f"{k + 1}: {self.nearest(k)} to {self.reach(k)} back" for k in levels],
                [f"{each + 1}." for each in range(self.size)],
            ),
            explanation="The weights of the positions that a level blends, the nearest first; they sum to 1.",
        )

    def forward(
        self, rows: Tensor, level: int, history: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        weights = self.computed()[level].to(rows.dtype)
        return blend(rows, weights, self.nearest(level), history, positions)


class SelectiveCrawl(WaveletCrawl):
    """A crawl whose weights depend on what a level reads, for each of G groups of channels: softmax(theta_k + W_k c_t).

    W (G K, P) starts at zero, so that every position starts with the weights of the plain crawl (docs/model.md, section
    12). Shapes: (B, T, P) -> (B, T, P).
    """

    def __init__(self, levels: int, size: int, width: int, groups: int):
        super().__init__(levels, size)
        self.groups, self.group_width = groups, width // groups
        self.select = nn.ModuleList(Linear(width, groups * size, bias=False) for _ in range(levels))
        for parameter in self.select.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, rows: Tensor, level: int, history: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        scores = self.select[level](rows).unflatten(-1, (self.groups, self.size))
        precise = torch.promote_types(rows.dtype, torch.float32)
        weights = (self.theta[level] + scores.to(precise)).softmax(-1).flip(-1).to(rows.dtype)
        # As a product: spreading a weight over the channels of a group would be slower.
        spread = torch.eye(self.groups, dtype=rows.dtype, device=rows.device).repeat_interleave(self.group_width, 1)
        return blend(rows, weights.movedim(-1, 0) @ spread, self.nearest(level), history, positions)


class DelayWavelet(nn.Module):
    """A wavelet whose levels read their input and a delayed copy of it.

    Shapes: decompose (B, T, P) -> (B, T, S, P), coarse to fine: the approximation, then the details from the deepest
    level to the first; reconstruct the other way round. In memory the scales come first, so that each is in one piece.
    """

    def __init__(self, shape: ModelShape, delay: FixedDelay | WaveletCrawl):
        super().__init__()
        self.shape = shape
        self.delay = delay

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        """The last rows of every level's input: level k keeps as many as its delay reaches back."""
        width, reach = self.shape.padded_width, self.delay.reach
        return {
            f"level{level}": torch.zeros(batch_size, reach(level), width, device=device, dtype=dtype)
            for level in range(self.shape.levels)
        }


class LiftingNetwork(nn.Module):
    """Predict or Update of one level: Linear(P, m P), GELU, dropout, Linear(m P, P). Shapes: (B, T, P) -> (B, T, P)."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.first = Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.last = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x, gelu=True)
        # Decoding does this for every level and token: a dropout that does nothing is not free there.
        return self.last(self.dropout(hidden) if self.training else hidden)


class LinearLiftingNetwork(nn.Module):
    """Predict or Update of one level as a single Linear(P, P). Shapes: (B, T, P) -> (B, T, P)."""

    def __init__(self, width: int):
        super().__init__()
        self.last = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


class LiftingWavelet(DelayWavelet):
    """The learned causal lifting wavelet (docs/model.md, section 3; lifting scheme: Sweldens 1998).

    Level k splits its input c_k, with past_k its delayed copy, into
    d_k = (past_k - Predict_k(c_k)) / sqrt(2) and c_{k+1} = (c_k + Update_k(d_k)) / sqrt(2).
    Reconstruction runs the update steps backwards, so untouched coefficients give the input back exactly, whatever
    the networks are. Shapes as of DelayWavelet.

    recompute_levels: the backward pass keeps c_k alone of every level and computes the rest again. Going back from
    c_{k+1} by the inverse step would keep as much, d_k, and add rounding errors.
    """

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["lifting"] = "lifting"
        network: Literal["mlp", "linear"] = Field("mlp", description="Predict and Update: two layers or a single one")
        hidden_multiplier: int = Field(1, ge=1, description="m, hidden width of an `mlp` network in multiples of P")
        dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability inside an `mlp` network")
        initialization: Literal["haar", "zero", "random"] = Field(
            "haar", description="start near the Haar wavelet, at Predict = Update = 0, or at small random weights"
        )
        level_scaling: bool = Field(False, description="divide level k's last initial weights by 1 + 0.1 k")
        crawl: int | None = Field(
            None, ge=1, le=33, description="K, odd: blend K consecutive look-backs a level; null looks back 2^k only"
        )
        crawl_groups: int | None = Field(
            None,
            ge=1,
            description="groups of channels, each with crawl weights that depend on the input; null: fixed weights",
        )
        untied_reconstruction: bool = Field(False, description="reconstruction has its own Update networks")

        @model_validator(mode="after")
        def _check_together(self) -> LiftingWavelet.Config:
            if self.crawl is not None and self.crawl % 2 == 0:
                raise ValueError(
                    f"crawl={self.crawl} is even, but the look-backs lie around the delay 2^k of each level of "
                    f"model.levels; use {self.crawl - 1} or {self.crawl + 1}"
                )
            if self.crawl_groups is not None and self.crawl is None:
                raise ValueError(
                    f"crawl_groups={self.crawl_groups} is about the weights of a crawl, but crawl is null; set both or "
                    "neither"
                )
            if self.network == "linear" and (self.hidden_multiplier != 1 or self.dropout):
                raise ValueError(
                    f"network='linear' has no hidden layer, but hidden_multiplier={self.hidden_multiplier} and "
                    f"dropout={self.dropout} ask for one; use network='mlp' or leave both out"
                )
            return self

        def check(self, model: ModelConfig) -> None:
            width = model.shape.padded_width
            if self.crawl_groups is not None and width % self.crawl_groups:
                raise ValueError(
                    f"crawl_groups={self.crawl_groups} does not divide the padded width {width} of "
                    f"model.width={model.width}; choose a divisor of it"
                )

    def __init__(self, config: Config, shape: ModelShape):
        delay: FixedDelay | WaveletCrawl = FixedDelay()
        if config.crawl is not None and config.crawl_groups is None:
            delay = WaveletCrawl(shape.levels, config.crawl)
        elif config.crawl is not None and config.crawl_groups is not None:
            delay = SelectiveCrawl(shape.levels, config.crawl, shape.padded_width, config.crawl_groups)
        super().__init__(shape, delay)
        self.config = config
        self.levels = shape.levels
        self.recompute_levels = False
        self.predict = self._networks(1.0)
        self.update = self._networks(0.5)
        self.reconstruction_update = self._networks(0.5) if config.untied_reconstruction else None

    def _networks(self, gain: float) -> nn.ModuleList:
        return nn.ModuleList(self._network(gain, level) for level in range(self.levels))

    @torch.no_grad()
    def _network(self, gain: float, level: int) -> nn.Module:
        width, config = self.shape.padded_width, self.config
        network: LiftingNetwork | LinearLiftingNetwork
        if config.network == "linear":
            network = LinearLiftingNetwork(width)
        else:
            network = LiftingNetwork(width, config.hidden_multiplier * width, config.dropout)
        for layer in network.children():
            if isinstance(layer, Linear):
                nn.init.zeros_(layer.bias)
                nn.init.normal_(layer.weight, std=0.01)
                if config.initialization == "haar":
                    layer.weight[:width, :width] = torch.eye(width)
        if config.initialization == "zero":
            nn.init.zeros_(network.last.weight)
        elif config.initialization == "haar":
            network.last.weight[:, :width] *= gain
        if config.level_scaling:
            network.last.weight /= 1 + 0.1 * level
        return network

    def for_next_block(self) -> LiftingWavelet:
        """The wavelet of the next block when blocks share one: the same, but for an untied reconstruction."""
        if self.reconstruction_update is None:
            return self
        wavelet = copy.copy(self)
        wavelet._modules = dict(self._modules)
        wavelet.reconstruction_update = self._networks(0.5)
        return wavelet

    def diagnose(self, rows: Tensor, state: Tree | None = None) -> Iterator[Diagnostic]:
        if isinstance(self.delay, WaveletCrawl):
            yield self.delay.diagnostic()

    def _fused(self, networks: nn.ModuleList, rows: Tensor) -> TrainingKernel | None:
        """The kernel that computes all levels of such rows at once, if any."""
        known = self.levels and type(self.delay) in (FixedDelay, WaveletCrawl) and self.config.network == "mlp"
        simple = known and not (self.training and (self.recompute_levels or self.config.dropout))
        if not (simple and torch.is_grad_enabled() and rows.dtype is product_type(rows)):
            return None
        plain = are_plain(*self.predict.modules(), *networks.modules())
        return training_kernel(rows) if plain and rows.numel() >= SMALLEST_FUSED else None

    def _run(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """part(*arguments), of which the backward pass gets the arguments alone where levels are to be recomputed."""
        if self.recompute_levels and self.training and torch.is_grad_enabled():
            random = self.config.dropout > 0
            return checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=random)
        return part(*arguments)

    def decompose(self, rows: Tensor, state: Tree | None = None) -> Tensor:
        kernel = self._fused(self.update, rows) if state is None else None
        if kernel is not None:
            pairs = zip(self.predict, self.update, strict=True)
            own = [parameter for pair in pairs for network in pair for parameter in network.parameters()]
            looks = self.delay.computed() if isinstance(self.delay, WaveletCrawl) else torch.ones(self.levels, 1)
            nearest = [self.delay.nearest(level) for level in range(self.levels)]
            return fused_decompose(kernel, rows, looks, nearest, own).permute(1, 2, 0, 3)
        approximation = rows
        positions = document_positions(state)
        details = []
        for level, networks in enumerate(zip(self.predict, self.update, strict=True)):
            past = None if state is None else self.delay(approximation, level, state[f"level{level}"], positions)
            detail, approximation = self._run(self._lift, level, *networks, approximation, past)
            details.append(detail)
        return scales_together([approximation, *reversed(details)])

    def _lift(
        self, level: int, predict: nn.Module, update: nn.Module, approximation: Tensor, past: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """d_k and c_{k+1} of c_k, and of past_k where a state gave it."""
        past = self.delay(approximation, level) if past is None else past
        detail = (past - predict(approximation)).mul_(SQRT_HALF)
        return detail, (approximation + update(detail)).mul_(SQRT_HALF)

    def reconstruct(self, coefficients: Tensor) -> Tensor:
        updates = self.update if self.reconstruction_update is None else self.reconstruction_update
        kernel = self._fused(updates, coefficients)
        if kernel is not None:
            own = [parameter for network in reversed(updates) for parameter in network.parameters()]
            return fused_reconstruct(kernel, coefficients.permute(2, 0, 1, 3), own)
        rows, *details = scales_apart(coefficients)
        scale = 1.0  # what the rows still have to be multiplied by, so that a level is one operation
        for update, detail in zip(reversed(updates), details, strict=True):
            scale *= SQRT_TWO
            rows = torch.sub(rows, self._run(update, detail), alpha=1 / scale)
        return rows * scale
