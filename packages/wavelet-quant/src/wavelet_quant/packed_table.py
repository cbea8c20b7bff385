"""Packed tables: integers of 8, 4 or 2 bits with scales, row by row, for what is gathered and not multiplied with.

A row of a packed matrix is spread over as many lines of the cache as it has words; here it lies together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_quant.packed import OFFSETS
from wavelet_quant.weight_format import StoredMatrix


class PackedTable(StoredMatrix):
    """A table (M, K) in `bits` bits, for embeddings and memories.

    codes: (M, K), integers from 0 to 2^bits - 1, which stand for what they do in a packed matrix. scales: (M, groups).
    Buffers: values (M, W), uint8, W = K bits / 8 rounded up, where byte i of a row has the codes of channels i, W + i,
    2 W + i, ... from its lowest bits on; scales; and read_as.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bits: int, read_as: torch.dtype = torch.float32):
        super().__init__(codes.shape, read_as, codes.device)
        self.bits, self.width = bits, codes.shape[-1]
        planes = F.pad(codes, (0, -self.width % (8 // bits))).chunk(8 // bits, -1)
        values = planes[0].clone(memory_format=torch.contiguous_format)
        for j, plane in enumerate(planes[1:], 1):
            values |= plane << (bits * j)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales.contiguous())

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        return self._dense(self.values, self.scales, dtype or self.dtype)

    def rows(self, index: Tensor) -> Tensor:
        # Not by indexing, which copies number by number.
        return self._dense(F.embedding(index, self.values), F.embedding(index, self.scales), self.dtype)

    def _dense(self, values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        if self.bits < 8:
            mask = (1 << self.bits) - 1
            values = torch.cat([(values >> (self.bits * j)) & mask for j in range(8 // self.bits)], -1)
        numbers = values[..., : self.width].float().sub_(OFFSETS[self.bits]).unflatten(-1, (scales.shape[-1], -1))
        return numbers.mul_(scales.float()[..., None]).flatten(-2).to(dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.bits} bits, {self.scales.shape[-1]} groups, read as {self.dtype}"
