"""Packed matrices: integers of 8, 4 or 2 bits with scales, in the order in which the native library reads them.

A code c of b bits stands for (c - offset) times the scale of its group: offset 128, 8 or 1.5. Rows lie together in
blocks of 16, and the codes of one row in words of 32 bits, word by word of the block:

    values (..., blocks, words, 16, 4), uint8    byte i of word w has the codes of channels (32 / b) w + 4 j + i in its
                                                 bits from b j on
    scales (..., blocks, groups, 16)             float32, bfloat16 or float16; groups of channels, or one for all

The last block and the last word are filled up with zeros. A `PackedKernel` reads this layout.

The library multiplies integers, exactly within a group. x becomes integers of 16 bits with a scale for each row, more
than 100 times finer than bfloat16. With AVX-512, more than 8 rows become integers of 8 bits, with a scale for each of
their groups of channels (the matrix's own, or 64): no entry is off by more than 1/254 of its group's greatest.
Not where `as_single_rows` asks for each row as it would be alone.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.kernels import active_kernels
from wavelet_quant.native_kernel import UNOBSERVED
from wavelet_quant.native_library import TYPES, observed
from wavelet_quant.packed_kernel import PackedKernel
from wavelet_quant.weight_format import StoredMatrix

OFFSETS = {8: 128.0, 4: 8.0, 2: 1.5}
GROUPS = (32, 64, 128)
BLOCK = 16  # rows
UNPACKED = 1 << 22  # entries that plain torch unpacks at a time


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., M, K) of `bits` bits in the order of the library, (..., blocks, words, 16, 4) uint8."""
    channels = 32 // bits
    codes = F.pad(codes, (0, -codes.shape[-1] % channels, 0, -codes.shape[-2] % BLOCK)).to(torch.uint8)
    shape = (*codes.shape[:-2], codes.shape[-2] // BLOCK, BLOCK, codes.shape[-1] // channels, 8 // bits, 4)
    planes = codes.view(shape).transpose(-4, -3).unbind(-2)
    packed = planes[0].clone(memory_format=torch.contiguous_format)
    for j, plane in enumerate(planes[1:], 1):
        packed |= plane << (bits * j)
    return packed


def unpack(values: Tensor, bits: int, height: int, width: int) -> Tensor:
    """The codes (..., height, width), uint8, of packed values: what `pack` was given."""
    mask = (1 << bits) - 1
    planes = torch.stack([(values >> (bits * j)) & mask for j in range(8 // bits)], -2)
    rows = planes.transpose(-4, -3).flatten(-3).flatten(-3, -2)
    return rows[..., :height, :width]


def dense(values: Tensor, scales: Tensor, bits: int, height: int, width: int) -> Tensor:
    """The matrix (..., height, width) that packed values and scales stand for, in float32."""
    per_row = scales.float().transpose(-1, -2).flatten(-3, -2)[..., :height, :]
    codes = unpack(values, bits, height, width).float() - OFFSETS[bits]
    return (codes.unflatten(-1, (per_row.shape[-1], -1)) * per_row[..., None]).flatten(-2)


def rounded_to_nearest(
    weight: Tensor, bits: int, group: int | None = None, scale_type: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor]:
    """Codes (..., M, K) and scales (..., M, groups) of a weight; each group of channels, or a whole row, has a scale.

    Raises ValueError for a weight that is not finite, and for a group that does not divide K.
    """
    if bits not in OFFSETS:
        raise ValueError(f"{bits} bits: packed matrices have {', '.join(map(str, OFFSETS))}")
    width = weight.shape[-1]
    if group is not None and (group not in GROUPS or width % group):
        sizes = ", ".join(map(str, GROUPS))
        raise ValueError(f"group {group} for {width} channels: a group has {sizes} and divides the channels")
    grouped = weight.detach().float().unflatten(-1, (-1, group or width))
    absmax = grouped.abs().amax(-1)
    if not (absmax.is_meta or absmax.isfinite().all()):
        raise ValueError("has entries that are not finite, which no integer stands for")
    largest = OFFSETS[bits] if bits == 2 else OFFSETS[bits] - 1
    scales = (absmax / largest).clamp_min(torch.finfo(scale_type).tiny).to(scale_type)
    if not (scales.is_meta or scales.isfinite().all()):
        raise ValueError(f"has entries up to {absmax.max():g}, too large for scales in {scale_type}")
    codes = (grouped / scales.float()[..., None] + OFFSETS[bits]).round_().clamp_(0, (1 << bits) - 1)
    return codes.flatten(-2).to(torch.uint8), scales


class PackedMatrix(StoredMatrix):
    """A matrix (M, K), or a stack of them (S, M, K), in `bits` bits; calling it multiplies.

    codes: (..., M, K), integers from 0 to 2^bits - 1. scales: (..., M, groups), floating point, with 1 group or K / 32,
    K / 64 or K / 128. read_as: the type that the matrix is read as. Buffers: values and scales, packed as the module
    says, and read_as.

    Raises ValueError for bits, groups and shapes that there are not.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bits: int, read_as: torch.dtype = torch.float32):
        super().__init__(codes.shape, read_as, codes.device)
        if bits not in OFFSETS:
            raise ValueError(f"{bits} bits: packed matrices have {', '.join(map(str, OFFSETS))}")
        self.bits, (self.height, self.width) = bits, codes.shape[-2:]
        _check_scales(scales, codes.shape)
        self.register_buffer("values", pack(codes, bits))
        padded = F.pad(scales, (0, 0, 0, -self.height % BLOCK))
        self.register_buffer("scales", padded.unflatten(-2, (-1, BLOCK)).transpose(-1, -2).contiguous())

    @classmethod
    def quantized(
        cls, weight: Tensor, bits: int, group: int | None = None, scale_type: torch.dtype = torch.float16
    ) -> PackedMatrix:
        """A weight (..., M, K) rounded to nearest; arguments and errors are those of `rounded_to_nearest`."""
        return cls(*rounded_to_nearest(weight, bits, group, scale_type), bits, weight.dtype)

    def forward(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """x W^T + b, then GELU where asked, in x's type. Shapes: (..., K) -> (..., M) or (S, N, K) -> (S, N, M)."""
        return packed_linear(x, self.values, self.scales, bias, self.bits, self.height, gelu)

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        return dense(self.values, self.scales, self.bits, self.height, self.width).to(dtype or self.dtype)

    def rows(self, index: Tensor) -> Tensor:
        block, row = index // BLOCK, index % BLOCK
        # A row's words as a packed matrix of its own, of one block with one row.
        values, scales = self.values[block, :, row], self.scales[block, :, row]
        mask = (1 << self.bits) - 1
        planes = [(values >> (self.bits * j)) & mask for j in range(8 // self.bits)]
        codes = torch.stack(planes, -2).flatten(-3)[..., : self.width].float() - OFFSETS[self.bits]
        grouped = codes.unflatten(-1, (scales.shape[-1], -1)) * scales.float()[..., None]
        return grouped.flatten(-2).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.bits} bits, {self.scales.shape[-2]} groups, read as {self.dtype}"


def _check_scales(scales: Tensor, shape: torch.Size) -> None:
    groups = scales.shape[-1] if scales.dim() else 0
    sizes = {1, *(shape[-1] // group for group in GROUPS if shape[-1] % group == 0)}
    if scales.dtype not in TYPES or scales.shape[:-1] != shape[:-1] or groups not in sizes:
        raise ValueError(f"scales {tuple(scales.shape)} {scales.dtype} do not fit codes {tuple(shape)}")


def packed_linear(
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool = False
) -> Tensor:
    """x W^T + b for a packed W, then GELU where asked, by the first active kernel that accepts it; see PackedMatrix.

    Raises ValueError for tensors that do not fit together.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        _check(x, values, scales, bias, bits, height)
        return multiply_in_torch(x, values, scales, bias, bits, height, gelu)
    if observed() or type(x) is not Tensor or not x.is_cpu or torch.is_autocast_enabled("cpu"):
        return _packed_linear(x, values, scales, bias, bits, height, gelu)
    return _multiply(x, values, scales, bias, bits, height, gelu)


def _check(x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int) -> None:
    width = x.shape[-1]
    blocks, stack = -(-height // BLOCK), values.shape[:-4]
    groups = scales.shape[-2] if scales.dim() > 1 else 0
    if (
        bits not in OFFSETS
        or values.dtype is not torch.uint8
        or values.shape[-4:] != (blocks, -(-width * bits // 32), BLOCK, 4)
        or scales.shape != (*stack, blocks, groups, BLOCK)
        or not (groups == 1 or (groups and width % groups == 0 and width // groups in GROUPS))
        or (stack and (len(stack) != 1 or x.dim() != 3 or len(x) != stack[0] or bias is not None))
        or (bias is not None and bias.shape != (height,))
    ):
        raise ValueError(
            f"no product of {tuple(x.shape)} with {height} rows of {bits} bits packed as {tuple(values.shape)} "
            f"with scales {tuple(scales.shape)}"
        )


def multiply_in_torch(
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
) -> Tensor:
    """`packed_linear` in plain torch, for tensors that fit together; it unpacks some rows of the matrix at a time."""
    width, matrices = x.shape[-1], len(values) if values.dim() == 5 else 1
    blocks = max(1, UNPACKED // (BLOCK * width * matrices))
    parts = []
    for start in range(0, values.shape[-4], blocks):
        first, end = start * BLOCK, min((start + blocks) * BLOCK, height)
        part, part_scales = values[..., start : start + blocks, :, :, :], scales[..., start : start + blocks, :, :]
        weight = dense(part, part_scales, bits, end - first, width).to(x.dtype)
        if weight.dim() == 3:
            parts.append(torch.bmm(x, weight.mT))
        else:
            parts.append(F.linear(x, weight, None if bias is None else bias[first:end].to(x.dtype)))
    out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return F.gelu(out) if gelu else out


def _multiply(
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
) -> Tensor:
    _check(x, values, scales, bias, bits, height)
    for kernel in active_kernels():
        if isinstance(kernel, PackedKernel) and kernel.accepts_packed(x, values, scales, bias, bits):
            return kernel.packed_linear(x, values, scales, bias, bits, height, gelu)
    return multiply_in_torch(x, values, scales, bias, bits, height, gelu)


def _shape(
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
) -> Tensor:
    return x.new_empty((*x.shape[:-1], height))


def _autocast(device: str, x: Tensor, *arguments: Any) -> Tensor:
    """The product of what autocast makes of x."""
    with torch.autocast(device, enabled=False):
        return _packed_linear(x.to(torch.get_autocast_dtype(device)), *arguments)


_operators = torch.library.Library("wavelet_quant", "FRAGMENT")
_operators.define(
    "packed_linear(Tensor x, Tensor values, Tensor scales, Tensor? bias, int bits, int height, bool gelu) -> Tensor"
)
_packed_linear = torch.ops.wavelet_quant.packed_linear.default
UNOBSERVED[_packed_linear] = _multiply
_operators.impl(_packed_linear, _multiply, "CompositeExplicitAutograd")
_operators.impl(_packed_linear, functools.partial(_autocast, "cpu"), "AutocastCPU")
_operators.impl(_packed_linear, functools.partial(_autocast, "cuda"), "AutocastCUDA")
torch.library.register_fake(_packed_linear, _shape, lib=_operators)
