"""All levels of a lifting wavelet as one node of the graph, in training: a kernel computes what lies between products.

The equations are those of `LiftingWavelet`; whoever changes one changes both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wavelet_core.training_kernel import TrainingKernel

SQRT_HALF = math.sqrt(0.5)
PER_NETWORK = 4  # parameters: the first map's weight and bias, the last one's


def fused_decompose(
    kernel: TrainingKernel, rows: Tensor, looks: Tensor, nearest: Sequence[int], networks: Sequence[Tensor]
) -> Tensor:
    """The scales (S, B, T, P) of rows (B, T, P), coarse to fine.

    looks: weights (L, K) of every level's look-backs, the furthest first. nearest: how far back the last of them is.
    networks: the parameters of Predict and Update of every level, from the first level on.
    """
    scales: Tensor = _Decompose.apply(kernel, tuple(nearest), rows, looks, *networks)
    return scales


def fused_reconstruct(kernel: TrainingKernel, scales: Tensor, networks: Sequence[Tensor]) -> Tensor:
    """The rows (B, T, P) of scales (S, B, T, P); networks: the parameters of every Update, from the last level on."""
    rows: Tensor = _Reconstruct.apply(kernel, scales, *networks)
    return rows


class _Network:
    """Linear, GELU, Linear of rows (N, P), and the gradients of what it gives, times a factor."""

    def __init__(self, kernel: TrainingKernel, parameters: Sequence[Tensor], dtype: torch.dtype):
        self.kernel = kernel
        self.first, self.first_bias, self.last, self.last_bias = (each.to(dtype) for each in parameters)

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What GELU is taken of, and what it gives."""
        inner = torch.addmm(self.first_bias, x, self.first.T)
        return inner, self.kernel.gelu(inner)

    def gradients(
        self, gradient: Tensor, factor: float, x: Tensor, inner: Tensor, hidden: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The gradient of `inner`, which the first map's weights lead on from, and those of all but the last bias."""
        to_inner, to_first_bias = self.kernel.gelu_gradients(gradient @ self.last, inner, factor)
        return to_inner, [to_inner.T @ x, to_first_bias, (gradient.T @ hidden).float().mul_(factor)]


class _Decompose(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: TrainingKernel, nearest: tuple[int, ...], rows: Tensor, looks: Tensor, *parameters: Tensor
    ) -> Tensor:
        weights, once = looks.float().contiguous(), torch.ones(1)
        coarse = rows.contiguous()
        scales = coarse.new_empty(len(nearest) + 1, *rows.shape)
        networks = _networks(kernel, parameters, rows.dtype)
        kept = []
        for level, back in enumerate(nearest):
            predict, update = networks[2 * level : 2 * level + 2]
            fine, detail = coarse, scales[len(nearest) - level]
            coarse = torch.empty_like(fine) if level + 1 < len(nearest) else scales[0]
            predicted = predict.hidden(_flat(fine))
            prediction = torch.addmm(predict.last_bias, predicted[1], predict.last.T)
            kernel.blend(fine, weights[level], back, prediction, SQRT_HALF, -1.0, detail)
            updated = update.hidden(_flat(detail))
            kernel.blend(
                fine, once, 0, torch.addmm(update.last_bias, updated[1], update.last.T), SQRT_HALF, 1.0, coarse
            )
            kept += [fine, *predicted, *updated]
        ctx.kernel, ctx.nearest = kernel, nearest
        ctx.save_for_backward(weights, scales, *parameters, *kept)
        return scales

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, scales, *others = ctx.saved_tensors
        levels = len(ctx.nearest)
        count = 2 * PER_NETWORK * levels
        parameters, kept = others[:count], others[count:]
        networks = _networks(ctx.kernel, parameters, scales.dtype)
        gradient = gradient.contiguous()
        to_coarse = gradient[0]
        to_looks = torch.empty_like(weights)
        to_parameters: list[Tensor] = []
        for level in reversed(range(levels)):
            predict, update = networks[2 * level : 2 * level + 2]
            fine, *inside = kept[5 * level : 5 * level + 5]
            detail = scales[levels - level]
            to_inner, from_update = update.gradients(_flat(to_coarse), SQRT_HALF, _flat(detail), *inside[2:])
            to_detail = torch.addmm(_flat(gradient[levels - level]), to_inner, update.first)
            to_inner, from_predict = predict.gradients(to_detail, -SQRT_HALF, _flat(fine), *inside[:2])
            to_fine, sums = ctx.kernel.blend_gradients(
                to_detail.view_as(fine), fine, weights[level], ctx.nearest[level], to_coarse, SQRT_HALF
            )
            to_coarse = torch.addmm(_flat(to_fine), to_inner, predict.first).view_as(fine)
            sums *= SQRT_HALF
            torch.sum(sums[:-2], 1, out=to_looks[level])
            to_parameters = [*from_predict, -sums[-2], *from_update, sums[-1], *to_parameters]
        return None, None, to_coarse, to_looks, *_like(to_parameters, parameters)


class _Reconstruct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: TrainingKernel, scales: Tensor, *parameters: Tensor) -> Tensor:
        scales = scales.contiguous()
        networks = _networks(kernel, parameters, scales.dtype)
        factors = _factors(len(networks))
        biases = [network.last_bias * -factor for network, factor in zip(networks, factors, strict=True)]
        rows = torch.add(torch.stack(biases).sum(0), _flat(scales[0]), alpha=factors[0] * math.sqrt(2))
        kept = []
        for network, factor, detail in zip(networks, factors, scales[1:], strict=True):
            inner, hidden = network.hidden(_flat(detail))
            rows.addmm_(hidden, network.last.T, alpha=-factor)
            kept += [inner, hidden]
        ctx.kernel = kernel
        ctx.save_for_backward(scales, *parameters, *kept)
        return rows.view_as(scales[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scales, *others = ctx.saved_tensors
        count = PER_NETWORK * (len(scales) - 1)
        parameters, kept = others[:count], others[count:]
        networks = _networks(ctx.kernel, parameters, scales.dtype)
        factors = _factors(len(networks))
        gradient = _flat(gradient.contiguous())
        to_scales = torch.empty_like(scales)
        torch.mul(gradient, factors[0] * math.sqrt(2), out=_flat(to_scales[0]))
        to_bias = gradient.sum(0, dtype=torch.float32)
        to_parameters = []
        for index, (network, factor) in enumerate(zip(networks, factors, strict=True)):
            inside = kept[2 * index : 2 * index + 2]
            to_inner, to_own = network.gradients(gradient, -factor, _flat(scales[1 + index]), *inside)
            torch.mm(to_inner, network.first, out=_flat(to_scales[1 + index]))
            to_parameters += [*to_own, -factor * to_bias]
        return None, to_scales, *_like(to_parameters, parameters)


def _factors(levels: int) -> list[float]:
    """What the rows get of every Update's result, from the last level on: its share grows with each level after it."""
    return [math.sqrt(2) ** level for level in reversed(range(levels))]


def _networks(kernel: TrainingKernel, parameters: Sequence[Tensor], dtype: torch.dtype) -> list[_Network]:
    return [
        _Network(kernel, parameters[start : start + PER_NETWORK], dtype)
        for start in range(0, len(parameters), PER_NETWORK)
    ]


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _like(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    return [gradient.to(parameter.dtype) for gradient, parameter in zip(gradients, parameters, strict=True)]
