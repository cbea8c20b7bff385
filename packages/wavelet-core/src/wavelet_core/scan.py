"""Linear recurrences of first order over positions, computed in parallel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def gated_scan(gates: Tensor, inputs: Tensor) -> Tensor:
    """m_t = gates_t * m_{t-1} + inputs_t with m_{-1} = 0, over axis 1, in about 2 sqrt(T) steps.

    Blocks of sqrt(T) positions are scanned side by side, then what each hands on (Blelloch 1990). Gates lie in [0, 1],
    so nothing can overflow. There are no gradients of the gradients.
    Shapes: inputs (B, T, C), gates (B, T, C) or (B, T, 1).
    """
    means: Tensor = _GatedScan.apply(gates, inputs)
    return means


class _GatedScan(torch.autograd.Function):
    """The recurrence as one node of the graph; its backward is the same recurrence from the last position on."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, inputs: Tensor) -> Tensor:
        means = _scan(gates, inputs)
        ctx.save_for_backward(gates, means)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gates, means = ctx.saved_tensors
        following = F.pad(gates[:, 1:], (0, 0, 0, 1))
        to_inputs = _scan(following.flip(1), gradient.flip(1)).flip(1)
        to_gates = to_inputs * F.pad(means[:, :-1], (0, 0, 1, 0))
        return to_gates.sum_to_size(gates.shape), to_inputs


def _scan(gates: Tensor, inputs: Tensor) -> Tensor:
    length = inputs.shape[1]
    block = math.isqrt(length - 1) + 1
    padding = (0, 0, 0, -length % block)
    gates, inputs = (F.pad(x, padding).unflatten(1, (-1, block)) for x in (gates, inputs))
    # Of every block: what it makes of silence, and what becomes of what comes in.
    fresh, kept = [inputs[:, :, 0]], [gates[:, :, 0]]
    for place in range(1, block):
        fresh.append(torch.addcmul(inputs[:, :, place], gates[:, :, place], fresh[-1]))
        kept.append(gates[:, :, place] * kept[-1])
    carried = [torch.zeros_like(fresh[-1][:, 0])]
    for index in range(inputs.shape[1] - 1):
        carried.append(torch.addcmul(fresh[-1][:, index], kept[-1][:, index], carried[-1]))
    means = torch.addcmul(torch.stack(fresh, 2), torch.stack(kept, 2), torch.stack(carried, 1).unsqueeze(2))
    return means.flatten(1, 2)[:, :length]
