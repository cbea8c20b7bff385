"""The Triton kernel: packed matrices on CUDA devices."""

from __future__ import annotations

import importlib.util
from typing import ClassVar, Literal

import torch
from torch import Tensor

from wavelet_core import ComponentConfig
from wavelet_quant.native_library import TYPES
from wavelet_quant.packed_kernel import PackedKernel


class Triton(PackedKernel):
    """Multiplies packed matrices on CUDA devices, dequantizing tile by tile in registers, in Triton."""

    needs: ClassVar[str] = "a CUDA device and Triton, which `pip install 'wavelet-quant[triton]'` installs"

    class Config(ComponentConfig):
        kind: Literal["triton"] = "triton"

    def available(self) -> bool:
        return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None

    def accepts_packed(self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int) -> bool:
        return x.is_cuda and values.device == x.device and x.dtype in TYPES and scales.dtype in TYPES

    def packed_linear(
        self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
    ) -> Tensor:
        from wavelet_quant.triton_product import multiply  # importing triton takes a while

        return multiply(x, values, scales, bias, bits, height, gelu)
