"""The reference kernel: packed matrices multiplied in plain torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from wavelet_core import ComponentConfig
from wavelet_quant.packed import multiply_in_torch
from wavelet_quant.packed_kernel import PackedKernel


class Reference(PackedKernel):
    """Multiplies packed matrices in plain torch, some rows of a matrix at a time, on any device and in any type.

    What other kernels are compared with. It accepts every product, so it is asked last.
    """

    priority: ClassVar[int] = -1

    class Config(ComponentConfig):
        kind: Literal["reference"] = "reference"

    def available(self) -> bool:
        return True

    def accepts_packed(self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int) -> bool:
        return True

    def packed_linear(
        self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
    ) -> Tensor:
        return multiply_in_torch(x, values, scales, bias, bits, height, gelu)
