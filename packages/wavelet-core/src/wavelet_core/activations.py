"""Activations, and products with them: torch's, or in training a kernel's, which passes over memory fewer times."""

from __future__ import annotations

from collections.abc import Callable
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


class _Computed(torch.autograd.Function):
    """A kernel's function of some tensors, and the one that gives their gradients, from that of its result."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], gradients: Callable[..., Any], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.gradients = gradients
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients(gradient, *ctx.saved_tensors)
        return None, None, *((gradients,) if isinstance(gradients, Tensor) else gradients)


def gelu(x: Tensor) -> Tensor:
    """GELU by the error function. Shapes: (...) -> (...)."""
    kernel = _kernel(x)
    if kernel is None:
        return F.gelu(x)
    result: Tensor = _Computed.apply(kernel.gelu, kernel.gelu_gradient, x)
    return result


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, arXiv 2109.08668). Shapes: (...) -> (...)."""
    kernel = _kernel(x)
    if kernel is None:
        return torch.relu(x).square()
    result: Tensor = _Computed.apply(kernel.relu_squared, kernel.relu_squared_gradient, x)
    return result


def silu_product(x: Tensor, gate: Tensor) -> Tensor:
    """x * SiLU(gate). Shapes: x and gate alike -> the same."""
    kernel = _kernel(x, gate)
    if kernel is None:
        return x * F.silu(gate)
    product: Tensor = _Computed.apply(kernel.silu_product, kernel.silu_product_gradients, x, gate)
    return product
