"""The native kernel for few vectors times one large matrix, `native/few_rows.cpp`.

Decoding consists of such products, and reading the matrix is all that takes time there. torch reads it once per vector
or worse on a processor (measured in docs/benchmarks.md); the kernel reads it once for all of them.

It is built when wavelet-core is installed, for x86-64 with AVX2, where there is a C++ compiler. Without it, or with
`WAVELET_NATIVE=0` in the environment, torch's products are used: the same results up to rounding, only slower.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("native") / "libfew_rows.so"
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _load() -> Any:
    """The kernel's function, or None where there is none."""
    if os.environ.get("WAVELET_NATIVE") == "0" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    try:
        function = ctypes.CDLL(str(LIBRARY)).few_rows
    except OSError:
        return None
    integer, address, long = ctypes.c_int, ctypes.c_void_p, ctypes.c_long
    function.argtypes = [integer, address, address, address, integer, address, *[long] * 5]
    function.restype = None
    return function


_function = _load()
available = _function is not None


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weight^T + bias in float32, then GELU where asked.

    Shapes, all contiguous: x (..., K) float32, weight (M, K) of a type in TYPES, bias (M) float32 or None -> (..., M);
    or x (S, N, K), weight (S, M, K) -> (S, N, M), without a bias.
    """
    shape = x.shape
    width, height = shape[-1], weight.shape[-2]
    out = torch.empty(shape[:-1] + (height,))  # noqa: RUF005 (a torch.Size stays one)
    matrices = 1 if weight.dim() == 2 else shape[0]
    _function(
        TYPES[weight.dtype],
        weight.data_ptr(),
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        gelu,
        out.data_ptr(),
        matrices,
        x.numel() // (matrices * width),
        width,
        height,
        torch.get_num_threads(),
    )
    return out
