"""The kernel for few vectors times one large matrix, `native/few_rows.cpp`, and the operators that it computes.

Decoding consists of such products, and reading the matrix is all that takes time there. torch reads it once per vector
or worse on a processor (measured in docs/benchmarks.md); the kernel reads it once for all of them.

It is built when wavelet-quant is installed, for x86-64 with AVX2, where there is a C++ compiler. Without it torch's
products are used: the same results up to rounding, only slower.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wavelet_core import ComponentConfig
from wavelet_core.kernels import Kernel

LIBRARY = Path(__file__).with_name("native") / "libfew_rows.so"
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST_ROWS = 64
SMALLEST_COMPILED = 1 << 18  # entries; below, and in float32, a compiled graph is faster without another operator


def _load() -> Any:
    """The library's function, or None where there is none."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
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


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weight^T + bias with sums in float32, then GELU where asked; the shapes and types are what `accepts` says."""
    wide = x.float().contiguous()
    if bias is not None:
        bias = bias.float().contiguous()
    shape = x.shape
    width, height = shape[-1], weight.shape[-2]
    out = wide.new_empty((*shape[:-1], height))
    matrices = 1 if weight.dim() == 2 else shape[0]
    _function(
        TYPES[weight.dtype],
        weight.data_ptr(),
        wide.data_ptr(),
        None if bias is None else bias.data_ptr(),
        gelu,
        out.data_ptr(),
        matrices,
        x.numel() // (matrices * width),
        width,
        height,
        torch.get_num_threads(),
    )
    return out.type_as(x)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether shapes and types make a product that the kernel computes, for any number of rows."""
    return (
        x.shape[-1] == weight.shape[-1] > 0
        and x.dtype is weight.dtype
        and weight.dtype in TYPES
        and weight.is_contiguous()
        and (weight.dim() == 2 or (bias is None and x.dim() == weight.dim() == 3 and len(x) == len(weight)))
        and (bias is None or (bias.is_cpu and bias.shape == weight.shape[:1]))
    )


class FewRows(Kernel):
    """Reads a matrix once for up to 64 rows, on a processor, in float32, bfloat16 or float16."""

    class Config(ComponentConfig):
        kind: Literal["few_rows"] = "few_rows"

    def available(self) -> bool:
        return _function is not None

    def accepts(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        rows = x.numel() // (x.shape[-1] or 1) if weight.dim() == 2 else x.shape[-2]
        return (
            rows <= MOST_ROWS
            and type(x) is Tensor
            and x.is_cpu
            and weight.is_cpu
            and not torch.is_autocast_enabled("cpu")
            and (not torch.compiler.is_compiling() or _worth_compiling(weight))
            and _fits(x, weight, bias)
        )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        return (_linear if _observed() else _multiply)(x, weight, bias, gelu)

    def stacked_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return (_stacked_linear if _observed() else _multiply)(x, weight)


def _worth_compiling(weight: Tensor) -> bool:
    return weight.numel() >= SMALLEST_COMPILED and weight.dtype is not torch.float32


def _observed() -> bool:
    """Whether somebody wants to see operators: the compiler, the profiler or a dispatch mode.

    Starting an operator that is written in Python takes a third of the time of a small product, so nobody else pays it.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._autograd._profiler_enabled()
    )


def _checked(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    if not _fits(x, weight, bias):
        raise ValueError(
            f"no product of {tuple(x.shape)} {x.dtype} with a contiguous matrix {tuple(weight.shape)} {weight.dtype}"
        )
    return _multiply(x, weight, bias, gelu)


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[-2]))


def _autocast(operator: Any, *arguments: Tensor | bool | None) -> Any:
    """The operator on what autocast makes of its tensors."""
    dtype = torch.get_autocast_dtype("cpu")
    cast = [argument.to(dtype) if isinstance(argument, Tensor) else argument for argument in arguments]
    with torch.autocast("cpu", enabled=False):
        return operator(*cast)


_operators = torch.library.Library("wavelet_quant", "DEF")
_operators.define("linear(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")
_operators.define("stacked_linear(Tensor x, Tensor weight) -> Tensor")
_linear, _stacked_linear = torch.ops.wavelet_quant.linear.default, torch.ops.wavelet_quant.stacked_linear.default
for _operator in (_linear, _stacked_linear):
    _operators.impl(_operator, _checked, "CPU")
    _operators.impl(_operator, functools.partial(_autocast, _operator), "AutocastCPU")
    torch.library.register_fake(_operator, _shape, lib=_operators)
