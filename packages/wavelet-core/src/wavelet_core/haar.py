"""The fixed causal Haar wavelet (docs/model.md, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wavelet_core.config import ComponentConfig, ModelShape
from wavelet_core.fused_lifting import SQRT_HALF
from wavelet_core.lifting import SMALLEST_FUSED, DelayWavelet, FixedDelay, scales_apart, scales_together
from wavelet_core.state import Tree, document_positions
from wavelet_core.training_kernel import TrainingKernel, training_kernel


class HaarWavelet(DelayWavelet):
    """The undecimated causal Haar wavelet; it has no parameters (docs/model.md, section 3).

    c_{k+1} and d_k are (c_k plus, minus its copy 2^k positions ago) / sqrt(2); reconstruction is
    (c_{k+1} + d_k) / sqrt(2). Shapes as of DelayWavelet.
    """

    resets_at_documents = True

    class Config(ComponentConfig):
        kind: Literal["haar"] = "haar"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__(shape, FixedDelay())

    def decompose(self, rows: Tensor, state: Tree | None = None) -> Tensor:
        levels = self.shape.levels
        if levels and state is None and torch.is_grad_enabled() and rows.numel() >= SMALLEST_FUSED:
            kernel = training_kernel(rows)
            if kernel is not None:
                scales: Tensor = _Decompose.apply(kernel, levels, rows)
                return scales.permute(1, 2, 0, 3)
        details = []
        positions = document_positions(state)
        for level in range(levels):
            past = self.delay(rows, level, None if state is None else state[f"level{level}"], positions)
            details.append((rows - past) * SQRT_HALF)
            rows = (rows + past) * SQRT_HALF
        return scales_together([rows, *reversed(details)])

    def reconstruct(self, coefficients: Tensor) -> Tensor:
        rows, *details = scales_apart(coefficients)
        for detail in details:
            rows = (rows + detail) * SQRT_HALF
        return rows


class _Decompose(torch.autograd.Function):
    """All levels as one node of the graph, which keeps nothing: rows (B, T, P) -> scales (S, B, T, P)."""

    @staticmethod
    def forward(ctx: Any, kernel: TrainingKernel, levels: int, rows: Tensor) -> Tensor:
        ctx.kernel, ctx.levels = kernel, levels
        coarse, once = rows.contiguous(), torch.ones(1)
        scales = coarse.new_empty(levels + 1, *rows.shape)
        for level in range(levels):
            fine, coarse = coarse, torch.empty_like(coarse) if level + 1 < levels else scales[0]
            kernel.blend(fine, -once, 1 << level, fine, SQRT_HALF, 1.0, scales[levels - level])
            kernel.blend(fine, once, 1 << level, fine, SQRT_HALF, 1.0, coarse)
        return scales

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        gradient = gradient.contiguous()
        to_coarse, once = gradient[0], torch.ones(1)
        for level in reversed(range(ctx.levels)):
            to_detail = gradient[ctx.levels - level]
            to_past, to_present = to_coarse - to_detail, to_coarse + to_detail
            to_coarse, _ = ctx.kernel.blend_gradients(to_past, to_past, once, 1 << level, to_present, SQRT_HALF)
        return None, None, to_coarse
