"""Rounding to nearest, with the scale of each group that brings the rounded group closest to the original.

The greatest entry of a group need not lie at the end of the range: with a smaller scale a few entries are clipped and
all others are rounded more finely. Scales are searched as they are stored, in 16 bits. They may be negative: the codes
of 8 and of 4 bits reach one step further down from the middle than up, and the sign turns that side to the greatest
entry. A group of zeros has the scale zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wavelet_quant.packed import OFFSETS

# How many steps from the middle the greatest entry is tried at; beyond the last code it is clipped. The first place is
# that of rounding without a search.
PLACES = {
    8: torch.linspace(127, 160, 5).tolist(),
    4: torch.linspace(7, 14, 15).tolist(),
    2: torch.linspace(1.5, 5, 15).tolist(),
}
CHUNK = 1 << 17  # entries that are searched at a time, few enough for a processor's cache


def nearest_codes(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The codes (..., M, K), uint8, of the levels nearest to a weight (..., M, K). Scales: (..., M, groups)."""
    grouped = weight.detach().float().unflatten(-1, (scales.shape[-1], -1))
    return steps(grouped, scales.float()[..., None], bits).add_(OFFSETS[bits]).to(torch.uint8).flatten(-2)


def steps(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """How many times its scale the level nearest to each entry is: codes less their offset, in floating point."""
    inverse = scales.reciprocal().masked_fill_(scales == 0, 0)
    offset = OFFSETS[bits]
    return (weight * inverse).add_(offset).round_().clamp_(0, (1 << bits) - 1).sub_(offset)


def best_scales(
    weight: Tensor,
    bits: int,
    group: int | None = None,
    importance: Tensor | None = None,
    scale_type: torch.dtype = torch.float16,
) -> Tensor:
    """The scales (..., M, groups) with which a weight (..., M, K), rounded to nearest, is closest to what it was.

    group: channels that share a scale, by default all of a row. importance: (..., K), the weight of each channel's
    squared error; the mean square of its inputs is what the error does to the product. scale_type: what the scales
    are stored in.

    Raises ValueError for entries that are not finite, or too large for such scales.
    """
    height, width = weight.shape[-2:]
    groups = width // (group or width)
    matrices = weight.detach().reshape(-1, height, groups, width // groups)
    scales = weight.new_empty((*matrices.shape[:2], groups), dtype=scale_type)
    rows = max(1, CHUNK // width)
    for index, matrix in enumerate(matrices):
        counts = None
        if importance is not None:
            counts = importance.float().reshape(-1, groups, width // groups)[index]
        for start in range(0, height, rows):
            scales[index, start : start + rows] = _search(
                matrix[start : start + rows].float(), bits, counts, scale_type
            )
    return scales.view(*weight.shape[:-1], groups)


def _search(weight: Tensor, bits: int, importance: Tensor | None, scale_type: torch.dtype) -> Tensor:
    """The best scales (rows, groups) for a weight (rows, groups, channels)."""
    high, low = weight.amax(-1), weight.amin(-1)
    greatest = torch.where(high > -low, high, low).neg_()
    if not greatest.isfinite().all():
        raise ValueError("has entries that are not finite, which no code stands for")
    if (greatest / PLACES[bits][0]).to(scale_type).isinf().any():
        raise ValueError(f"has entries up to {greatest.abs().max():g}, too large for scales in {scale_type}")
    best = torch.zeros_like(greatest)
    least = torch.full_like(greatest, torch.inf)

    def attempt(scales: Tensor) -> None:
        scales = scales.to(scale_type).float()
        error = steps(weight, scales[..., None], bits).mul_(scales[..., None]).sub_(weight).square_()
        error = error.sum(-1) if importance is None else (error * importance).sum(-1)
        better = error < least
        best[better], least[better] = scales[better], error[better]

    for place in PLACES[bits]:
        attempt(greatest / place)
    # The scale that is best for the codes found, by least squares; rounding to it changes some of them once more.
    codes = steps(weight, best[..., None], bits)
    counted = codes if importance is None else codes * importance
    attempt((counted * weight).sum(-1) / (counted * codes).sum(-1).clamp_min(torch.finfo(torch.float32).tiny))
    return best.to(scale_type)
