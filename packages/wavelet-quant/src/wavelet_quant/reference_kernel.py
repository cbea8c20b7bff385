"""The reference kernel: plain torch, on any device and in any type."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core import ComponentConfig
from wavelet_quant.packed import multiply_in_torch
from wavelet_quant.packed_kernel import PackedKernel


class Reference(PackedKernel):
    """Multiplies in plain torch, on any device; packed matrices some rows at a time.

    What every other kernel is compared with. It accepts every product, so it is asked last.
    """

    priority: ClassVar[int] = -1

    class Config(ComponentConfig):
        kind: Literal["reference"] = "reference"

    def available(self) -> bool:
        return True

    def accepts(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        return True

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out

    def stacked_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(x, weight.mT)

    def accepts_packed(self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int) -> bool:
        return True

    def packed_linear(
        self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
    ) -> Tensor:
        return multiply_in_torch(x, values, scales, bias, bits, height, gelu)
