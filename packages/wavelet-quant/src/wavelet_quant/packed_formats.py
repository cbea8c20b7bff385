"""The formats `int8`, `int4` and `int2`: whole numbers with scales, bit-packed as the kernels read them."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from wavelet_core import ComponentConfig
from wavelet_quant.clipping import best_scales, nearest_codes
from wavelet_quant.gptq import quantize_with_hessian
from wavelet_quant.packed import PackedMatrix
from wavelet_quant.weight_format import WeightFormat


class PackedFormat(WeightFormat):
    """Whole numbers of `bits` bits, with a scale for each row or for each group of channels of a row."""

    bits: ClassVar[int]
    scale_type: ClassVar[torch.dtype]

    @property
    def group(self) -> int | None:
        """Channels that share a scale; None for a whole row."""
        return getattr(self.config, "group", None)

    def fits(self, shape: torch.Size) -> bool:
        return self.group is None or shape[-1] % self.group == 0

    def store(self, weight: Tensor, hessian: Tensor | None = None) -> PackedMatrix:
        if weight.is_meta or not self.rounds_by_inputs:
            return PackedMatrix.quantized(weight, self.bits, self.group, self.scale_type)
        if hessian is not None:
            codes, scales = quantize_with_hessian(weight, hessian, self.bits, self.group, self.scale_type)
        else:
            scales = best_scales(weight, self.bits, self.group, scale_type=self.scale_type)
            codes = nearest_codes(weight, scales, self.bits)
        return PackedMatrix(codes, scales, self.bits, weight.dtype)


class GroupedConfig(ComponentConfig):
    """What formats with a scale for each group can be told."""

    group: Literal[32, 64, 128] = Field(64, description="channels with one scale; has to divide those of the matrix")


class Int8(PackedFormat):
    """8 bits a weight, symmetric, with one float32 scale for each output channel: the published ptq8."""

    class Config(ComponentConfig):
        kind: Literal["int8"] = "int8"

    bits, scale_type = 8, torch.float32


class Int4(PackedFormat):
    """4 bits a weight, in groups of channels with a 16-bit scale each."""

    rounds_by_inputs = True

    class Config(GroupedConfig):
        kind: Literal["int4"] = "int4"

    bits, scale_type = 4, torch.float16


class Int2(PackedFormat):
    """2 bits a weight, in groups of channels with a 16-bit scale each."""

    rounds_by_inputs = True

    class Config(GroupedConfig):
        kind: Literal["int2"] = "int2"

    bits, scale_type = 2, torch.float16
