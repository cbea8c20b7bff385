"""Linear maps, y = x W^T + b: torch's, or a kernel's where no gradients are wanted and it is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core import activations
from wavelet_core.kernels import active_kernels

# Entries of a matrix; below, starting a kernel takes longer than it saves. torch starts slowly in 16 bits and GELU.
SMALLEST_MATRIX = {torch.float32: 1 << 16, torch.bfloat16: 1 << 13, torch.float16: 1 << 13}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x W^T + b, then GELU where asked. Shapes: x (..., K), weight (M, K), bias (M) or None -> (..., M)."""
    worth_it = gelu or weight.numel() >= SMALLEST_MATRIX.get(weight.dtype, 0)
    if worth_it and not torch.is_grad_enabled() and weight.dim() == 2:
        for kernel in active_kernels():
            if kernel.accepts(x, weight, bias):
                return kernel.linear(x, weight, bias, gelu)
    out = F.linear(x, weight, bias)
    return activations.gelu(out) if gelu else out


def stacked_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x_s W_s^T for every s. Shapes: x (S, N, K), weight (S, M, K) -> (S, N, M)."""
    if weight.numel() >= SMALLEST_MATRIX.get(weight.dtype, 0) and not torch.is_grad_enabled() and weight.dim() == 3:
        for kernel in active_kernels():
            if kernel.accepts(x, weight):
                return kernel.stacked_linear(x, weight)
    return torch.bmm(x, weight.mT)


class Linear(nn.Linear):
    """`torch.nn.Linear` that a kernel can compute. Shapes: (..., K) -> (..., M); parameters weight (M, K), bias (M).

    gelu: apply GELU to the result, in the same pass.
    """

    def matrix(self) -> Tensor:
        """The weight (M, K) in floating point: what a weight format overrides."""
        return self.weight

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, gelu)


def are_plain(*modules: Any) -> bool:
    """Whether linear maps among modules are in floating point and nobody has hooks: others may compute what they do."""
    return not any(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or (isinstance(module, nn.Linear) and type(module) not in (nn.Linear, Linear))
        for module in modules
    )


class StackedLinear(nn.Module):
    """S linear maps without bias side by side, x_s W_s^T for every s.

    std: of the normal distribution that the initial weights are drawn from; K^-0.5 by default. scales: which scale of
    the wavelet each map belongs to, 0 the coarsest, for weight formats that go by that; None where they belong to none.
    Shapes: (S, N, K) -> (S, N, M); parameter weight (S, M, K).
    """

    scales: Sequence[int] | None = None

    def __init__(self, count: int, in_features: int, out_features: int, std: float | None = None):
        super().__init__()
        std = in_features**-0.5 if std is None else std
        self.weight = nn.Parameter(std * torch.randn(count, out_features, in_features))

    def matrix(self) -> Tensor:
        """The weight (S, M, K) in floating point: what a weight format and a parametrization override."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return stacked_linear(x, self.matrix())
