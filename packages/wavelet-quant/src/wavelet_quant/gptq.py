"""Rounding with regard to the inputs: GPTQ (Frantar et al. 2022, arXiv 2210.17323), and rounds that improve on it.

What rounding W to Q does to the products x W^T is, in the mean of the squares, the trace of (W - Q) H (W - Q)^T, with H
the mean of x x^T. GPTQ rounds one channel after the other, those with the largest inputs first, and after each the
channels still to come take over what of its error they can. The scales are searched beforehand (clipping.py), so that
this order needs no other order in memory. Then every round first fits each group's scale to its codes, and moves each
code once more to where the error of all others wants it; neither can make the whole worse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wavelet_quant.clipping import best_scales, steps
from wavelet_quant.packed import OFFSETS

BLOCK = 128  # channels whose errors are passed on to all others by one product
DAMPING = (0.01, 0.1, 1.0)  # added to the diagonal, as a share of its mean; the first that Cholesky succeeds with
ROUNDS = 3


def quantize_with_hessian(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group: int | None = None,
    scale_type: torch.dtype = torch.float16,
) -> tuple[Tensor, Tensor]:
    """The codes (..., M, K), uint8, and scales (..., M, groups) for a weight (..., M, K) and its inputs.

    hessian: (..., blocks, size, size), the mean of x x^T in blocks along its diagonal, the last filled up with zeros;
    errors are made good inside a block. group: channels that share a scale, by default all of a row; one that lies in
    several blocks keeps the scale that it begins with.

    No row is worse, as the Hessian measures it, than rounded to nearest with the scales that it begins with: those of
    `best_scales`, where the squared error of a channel counts as much as its inputs.

    Raises ValueError for a weight with entries that are not finite, and for a Hessian that does not fit or is none.
    """
    height, width = weight.shape[-2:]
    blocks, size = hessian.shape[-3:-1] if hessian.dim() > 2 else (0, 0)
    if hessian.shape != (*weight.shape[:-2], blocks, size, size) or not width <= blocks * size < width + size:
        raise ValueError(f"has a Hessian {tuple(hessian.shape)} that does not fit {tuple(weight.shape)}")
    importance = hessian.float().diagonal(dim1=-2, dim2=-1).flatten(-2)[..., :width]
    if not hessian.isfinite().all() or (importance < 0).any():
        raise ValueError("has a Hessian with entries that are not finite, or negative ones on the diagonal")
    # What the text never shows counts a little all the same.
    floor = (DAMPING[0] * importance.mean(-1, keepdim=True)).clamp_min_(torch.finfo(torch.float32).tiny)
    scales = best_scales(weight, bits, group, importance + floor, scale_type)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    shared = width // scales.shape[-1]
    group_of = torch.arange(width, device=weight.device) // shared
    for one, own, rounded, parts in zip(
        weight.detach().reshape(-1, height, width),
        scales.view(-1, height, scales.shape[-1]),
        codes.view(-1, height, width),
        hessian.reshape(-1, blocks, size, size),
        strict=True,
    ):
        for block, part in enumerate(parts):
            channels = slice(block * size, min((block + 1) * size, width))
            length = channels.stop - channels.start
            groups = slice(channels.start // shared, -(-channels.stop // shared))
            matrix = _Rounding(
                one[:, channels].float().T.contiguous(),
                part[:length, :length].float(),
                own[:, groups].float().T.contiguous(),
                group_of[channels] - groups.start,
                bits,
            )
            matrix.improve(scale_type if blocks == 1 or size % shared == 0 else None)
            own[:, groups] = matrix.scales.T
            rounded[:, channels] = matrix.steps.add_(OFFSETS[bits]).T
    return codes, scales


class _Rounding:
    """A matrix while it is rounded, transposed: channels K first, so that each is one run in memory.

    weight (K, M), hessian (K, K), scales (groups, M), group_of (K,). steps (K, M): how many times its scale the level
    of each entry is.
    """

    def __init__(self, weight: Tensor, hessian: Tensor, scales: Tensor, group_of: Tensor, bits: int):
        self.weight, self.hessian, self.scales, self.group_of, self.bits = weight, hessian, scales, group_of, bits
        self.steps = steps(weight, scales[group_of], bits)
        self.places = group_of.tolist()

    def improve(self, scale_type: torch.dtype | None) -> None:
        """From rounding to nearest to better codes and, as they are stored in `scale_type`, better scales."""
        if not self.hessian.diagonal().any():
            return
        before = self.loss(), self.steps, self.scales.clone()
        self.pass_errors_on()
        for _ in range(ROUNDS):
            if scale_type is not None:
                self.fit_scales(scale_type)
            self.sweep()
        worse = self.loss() >= before[0]
        self.steps = torch.where(worse, before[1], self.steps)
        self.scales = torch.where(worse, before[2], self.scales)

    def error(self) -> Tensor:
        return self.weight - self.steps * self.scales[self.group_of]

    def loss(self) -> Tensor:
        """What every row does to the products, (M,)."""
        error = self.error()
        return (error * (self.hessian @ error)).sum(0)

    def pass_errors_on(self) -> None:
        """GPTQ."""
        order = self.hessian.diagonal().argsort(descending=True)
        factor = _inverse_factor(self.hessian[order][:, order])
        rest, places = self.weight[order], self.group_of[order].tolist()
        rounded = torch.empty_like(rest)
        for first in range(0, len(rest), BLOCK):
            last = min(first + BLOCK, len(rest))
            errors = torch.empty_like(rest[first:last])
            for channel in range(first, last):
                scale = self.scales[places[channel]]
                rounded[channel] = steps(rest[channel], scale, self.bits)
                error = torch.addcmul(rest[channel], rounded[channel], scale, value=-1) / factor[channel, channel]
                rest[channel + 1 : last].addcmul_(factor[channel, channel + 1 : last, None], error, value=-1)
                errors[channel - first] = error
            rest[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
        self.steps = torch.empty_like(rounded)
        self.steps[order] = rounded

    def fit_scales(self, scale_type: torch.dtype) -> None:
        """To each group in turn the scale with which its codes make good the most, if it still does as stored."""
        error = self.error()
        for group in range(len(self.scales)):
            own = (self.group_of == group).nonzero().flatten()
            first, last = int(own[0]), int(own[-1]) + 1
            codes, rows = self.steps[first:last], self.hessian[first:last]
            gain = (codes * (rows @ error)).sum(0)
            cost = (codes * (rows[:, first:last] @ codes)).sum(0)
            scale = self.scales[group]
            change = (scale + gain / cost).to(scale_type).float() - scale
            change[~(change * (2 * gain - change * cost) > 0)] = 0
            self.scales[group] += change
            error[first:last].addcmul_(codes, change, value=-1)

    def sweep(self) -> None:
        """Round every channel anew, with the codes of all others as they are."""
        error = self.error()
        diagonal = self.hessian.diagonal().tolist()
        for first in range(0, len(error), BLOCK):
            last = min(first + BLOCK, len(error))
            pull = self.hessian[first:last] @ error
            for channel in range(first, last):
                if not diagonal[channel]:
                    continue
                scale, before = self.scales[self.places[channel]], self.steps[channel]
                after = steps(before * scale + pull[channel - first] / diagonal[channel], scale, self.bits)
                change = (before - after) * scale
                self.steps[channel] = after
                error[channel] += change
                pull.addcmul_(self.hessian[first:last, channel, None], change)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with U^T U the inverse of a Hessian whose diagonal is damped as much as it takes."""
    identity = torch.eye(len(hessian), device=hessian.device)
    normal = hessian / hessian.diagonal().mean()
    for damping in DAMPING:
        # The lower factor of the channels in reverse is an upper one here: H = R R^T, so that U is the inverse of R.
        lower, failed = torch.linalg.cholesky_ex((normal + damping * identity).flip(0, 1))
        if not failed:
            inverse: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return inverse
    raise ValueError("has a Hessian that is not positive semidefinite")
