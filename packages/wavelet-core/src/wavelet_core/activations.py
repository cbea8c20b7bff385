"""Activations, and products with them: torch's, or in training a kernel's, which passes over memory fewer times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wavelet_core.training_kernel import TrainingKernel, training_kernel

SMALLEST = 1 << 14  # entries; below, torch's functions have ended before a kernel starts


def _kernel(x: Tensor, *others: Tensor) -> TrainingKernel | None:
    """The kernel for training with functions of tensors that have to be alike, if any."""
    if not torch.is_grad_enabled() or x.numel() < SMALLEST:
        return None
    alike = all(other.dtype is x.dtype and other.shape == x.shape for other in others)
    return training_kernel(x) if alike else None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: TrainingKernel) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernel = kernel
        return kernel.gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.kernel.gelu_gradient(gradient, *ctx.saved_tensors), None


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, kernel: TrainingKernel) -> Tensor:
        ctx.save_for_backward(x, gate)
        ctx.kernel = kernel
        return kernel.silu_product(x, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.kernel.silu_product_gradients(gradient, *ctx.saved_tensors), None


def gelu(x: Tensor) -> Tensor:
    """GELU by the error function. Shapes: (...) -> (...)."""
    kernel = _kernel(x)
    if kernel is None:
        return F.gelu(x)
    result: Tensor = _Gelu.apply(x, kernel)
    return result


def silu_product(x: Tensor, gate: Tensor) -> Tensor:
    """x * SiLU(gate). Shapes: x and gate alike -> the same."""
    kernel = _kernel(x, gate)
    if kernel is None:
        return x * F.silu(gate)
    product: Tensor = _SiluProduct.apply(x, gate, kernel)
    return product
