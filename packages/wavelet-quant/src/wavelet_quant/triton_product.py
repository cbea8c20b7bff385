"""A product with a packed matrix in Triton: each program multiplies a tile of x with a tile of rows of the matrix.

It reads words of the matrix once, makes numbers of x's type of them in registers, and sums in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wavelet_quant.packed import BLOCK, OFFSETS

CHANNELS = 64  # of a tile; all of one group
FEW_ROWS = 16  # the fewest that tensor cores multiply at once
INTERPRETED = triton.knobs.runtime.interpret  # by Triton's interpreter, which does not multiply in bfloat16


@triton.jit
def _multiply_tile(
    x, words, scales, bias, out,
    rows, width, height, blocks, line_words, groups, group,
    bits: tl.constexpr, offset: tl.constexpr,
    tile_rows: tl.constexpr, tile_height: tl.constexpr, tile_words: tl.constexpr, line: tl.constexpr,
    has_bias: tl.constexpr, gelu: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    channels: tl.constexpr = 32 // bits  # of a word
    tile_channels: tl.constexpr = tile_words * channels
    matrix = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * tile_rows + tl.arange(0, tile_rows)
    output = tl.program_id(1).to(tl.int64) * tile_height + tl.arange(0, tile_height)
    block, lane = output // line, output % line
    place = tl.arange(0, channels)
    shift = 8 * (place % 4) + bits * (place // 4)
    word_at = words + (matrix * blocks + block) * line_words * line + lane
    scale_at = scales + (matrix * blocks + block) * groups * line + lane
    x_at = x + (matrix * rows + row) * width
    inside = output < height
    total = tl.zeros((tile_rows, tile_height), tl.float32)
    for start in range(0, width, tile_channels):
        word = start // channels + tl.arange(0, tile_words)
        loaded = tl.load(
            word_at[None, :] + word[:, None] * line, mask=(word < line_words)[:, None] & inside[None, :], other=0
        )
        codes = (loaded[:, None, :] >> shift[None, :, None]) & ((1 << bits) - 1)
        scale = tl.load(scale_at + (start // group) * line, mask=inside, other=0).to(tl.float32)
        weight = (tl.reshape(codes, (tile_channels, tile_height)).to(tl.float32) - offset) * scale[None, :]
        channel = start + tl.arange(0, tile_channels)
        part = tl.load(
            x_at[:, None] + channel[None, :], mask=(row < rows)[:, None] & (channel < width)[None, :], other=0
        )
        weight = weight.to(part.dtype)
        if widen:
            part, weight = part.to(tl.float32), weight.to(tl.float32)
        total += tl.dot(part, weight, input_precision="ieee")
    if has_bias:
        total += tl.load(bias + output, mask=inside, other=0).to(tl.float32)[None, :]
    if gelu:
        total = 0.5 * total * (1 + tl.erf(total * 0.7071067811865476))
    place_out = out + (matrix * rows + row)[:, None] * height + output[None, :]
    tl.store(place_out, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & inside[None, :])


def constants(rows: int, bits: int, group: int | None) -> dict[str, Any]:
    """How the work is divided, and what a packed matrix of `bits` bits with groups of channels is read with."""
    many = rows > FEW_ROWS  # with few, more programs are what keeps the memory busy
    return {
        "bits": bits,
        "offset": OFFSETS[bits],
        "tile_rows": 4 * FEW_ROWS if many else FEW_ROWS,
        "tile_height": 4 * BLOCK if many else BLOCK,
        "tile_words": min(CHANNELS, group or CHANNELS) * bits // 32,
        "line": BLOCK,
    }


def multiply(
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
) -> Tensor:
    """`packed_linear` for tensors that fit together, in float32, bfloat16 or float16, on one device."""
    x, values, scales = x.contiguous(), values.contiguous(), scales.contiguous()
    out = x.new_empty((*x.shape[:-1], height))
    if not out.numel():
        return out
    width, (blocks, groups) = x.shape[-1], scales.shape[-3:-1]
    matrices = len(values) if values.dim() == 5 else 1
    rows = x.numel() // (matrices * width)
    chosen = constants(rows, bits, width // groups if groups > 1 else None)
    grid = (triton.cdiv(rows, chosen["tile_rows"]), triton.cdiv(height, chosen["tile_height"]), matrices)
    with torch.cuda.device_of(x):
        _multiply_tile[grid](
            x,
            values.view(torch.int32),
            scales,
            None if bias is None else bias.contiguous(),
            out,
            rows,
            width,
            height,
            blocks,
            values.shape[-3],
            groups,
            width // groups,
            has_bias=bias is not None,
            gelu=gelu,
            widen=INTERPRETED and x.dtype is torch.bfloat16,
            **chosen,
        )
    return out
