"""Linear maps, y = x W^T + b, with a kernel of our own where torch is slow: few rows on a processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core import few_rows

MOST_ROWS = 64
SMALLEST_MATRIX = 1 << 16  # entries; below, starting the kernel takes longer than it saves


def _reads_once(x: Tensor, weight: Tensor, rows: int) -> bool:
    """Whether the kernel that reads the matrix once for all rows can compute x W^T: no gradients, on a processor."""
    return (
        few_rows.available
        and not torch.compiler.is_compiling()  # first: a limit on rows would be compiled into the graph
        and rows <= MOST_ROWS
        and weight.numel() >= SMALLEST_MATRIX
        and not torch.is_grad_enabled()
        and type(x) is Tensor
        and x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype
        and weight.dtype in few_rows.TYPES
        and x.shape[-1] == weight.shape[-1]
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x W^T + b, then GELU where asked. Shapes: x (..., K), weight (M, K), bias (M) or None -> (..., M)."""
    fits = weight.dim() == 2 and (bias is None or (bias.is_cpu and bias.shape == weight.shape[:1]))
    if not (fits and _reads_once(x, weight, x.numel() // (x.shape[-1] or 1))):
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out
    if bias is not None:
        bias = bias.float().contiguous()
    return few_rows.few_rows(x.float().contiguous(), weight, bias, gelu).to(x.dtype)


def stacked_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x_s W_s^T for every s. Shapes: x (S, N, K), weight (S, M, K) -> (S, N, M)."""
    fits = x.dim() == weight.dim() == 3 and len(x) == len(weight)
    if not (fits and _reads_once(x, weight, x.shape[1])):
        return torch.bmm(x, weight.mT)
    return few_rows.few_rows(x.float().contiguous(), weight).to(x.dtype)


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster for few rows. Shapes: (..., K) -> (..., M); parameters weight (M, K), bias (M).

    gelu: apply GELU to the result, in the same pass.
    """

    def matrix(self) -> Tensor:
        """The weight (M, K) in floating point: what a weight format overrides."""
        return self.weight

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, gelu)


class StackedLinear(nn.Module):
    """S linear maps without bias side by side, x_s W_s^T for every s.

    std: of the normal distribution that the initial weights are drawn from; K^-0.5 by default.
    Shapes: (S, N, K) -> (S, N, M); parameter weight (S, M, K).
    """

    def __init__(self, count: int, in_features: int, out_features: int, std: float | None = None):
        super().__init__()
        std = in_features**-0.5 if std is None else std
        self.weight = nn.Parameter(std * torch.randn(count, out_features, in_features))

    def matrix(self) -> Tensor:
        """The weight (S, M, K) in floating point: what a weight format and a parametrization override."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return stacked_linear(x, self.matrix())
