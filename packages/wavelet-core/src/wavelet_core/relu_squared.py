"""The squared ReLU (So et al. 2021, arXiv 2109.08668)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2. There are no gradients of the gradients."""
    if torch.is_grad_enabled() and x.requires_grad:
        squared: Tensor = _ReluSquared.apply(x)
        return squared
    return torch.relu(x).square_()


class _ReluSquared(torch.autograd.Function):
    """One node of the graph that keeps one tensor: its gradient is twice the ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rectified = torch.relu(x)
        ctx.save_for_backward(rectified)
        return rectified.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        return (rectified * gradient).mul_(2)
