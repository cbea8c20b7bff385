"""Rows from earlier positions, and weighted sums of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wavelet_core.state import in_document, move_on


def with_history(rows: Tensor, history: Tensor | None, reach: int) -> Tensor:
    """`rows` (B, T, P) with the `reach` rows before them in front: zeros at the start of a text, else the history.

    The history (B, reach, P) is moved on to the last `reach` rows, in place.
    """
    if history is None:
        return F.pad(rows, (0, 0, reach, 0))
    extended = torch.cat([history if history.dtype is rows.dtype else history.to(rows.dtype), rows], dim=1)
    move_on(history, extended)
    return extended


def blend(
    rows: Tensor, weights: Tensor, nearest: int, history: Tensor | None = None, positions: Tensor | None = None
) -> Tensor:
    """sum_j weights_j * rows, as they were `nearest` + K - 1 - j positions before: K look-backs, the furthest first.

    weights: (K); or (K, P), for every channel; or (K, B, T, P), for every position and channel. history, positions: as
    `with_history` and `in_document` take them. Shapes: rows (B, T, P) -> (B, T, P).
    """
    size, length = len(weights), rows.shape[1]
    reach = nearest + size - 1
    extended = with_history(rows, history, reach)
    if length == 1 and positions is None and weights.dim() == 1:
        return torch.bmm(weights.expand(len(rows), 1, size), extended[:, :size])
    if positions is None:
        return (_Blend.apply if torch.is_grad_enabled() else _blend)(extended, weights, length)
    past = weights[0] * in_document(extended[:, :length], reach, positions)
    for start in range(1, size):
        past = past + weights[start] * in_document(extended[:, start : start + length], reach - start, positions)
    return past


def _blend(extended: Tensor, weights: Tensor, length: int) -> Tensor:
    """sum_j weights_j * extended[:, j : j + length]. Shapes: extended (B, T + K - 1, P) or longer -> (B, T, P)."""
    blended = extended[:, :length] * weights[0]
    for start in range(1, len(weights)):
        blended.addcmul_(extended[:, start : start + length], weights[start])
    return blended


class _Blend(torch.autograd.Function):
    """`_blend` as one node of the graph: its backward makes no tensor for every look-back."""

    @staticmethod
    def forward(ctx: Any, extended: Tensor, weights: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(extended, weights)
        return _blend(extended, weights, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        extended, weights = ctx.saved_tensors
        length = gradient.shape[1]
        to_extended = torch.zeros_like(extended)
        to_weights = []
        for start, weight in enumerate(weights):
            to_extended[:, start : start + length].addcmul_(gradient, weight)
            product = extended[:, start : start + length] * gradient
            to_weights.append(product.sum_to_size(weight.shape) if weight.dim() else product.sum())
        return to_extended, torch.stack(to_weights), None
