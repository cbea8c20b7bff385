"""The native kernel: few vectors times one large matrix, Walsh-Hadamard transforms, and the torch operators for both.

Decoding consists of such products, and reading the matrix is all that takes time there. torch reads it once per vector
or worse on a processor (measured in docs/benchmarks.md); the kernel reads it once for all of them. For many vectors
arithmetic takes the time, and whichever of the two is faster on this machine multiplies.

Without the library torch's products are used: the same results up to rounding, only slower.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from wavelet_core import ComponentConfig
from wavelet_core.atomic_files import write_atomically
from wavelet_core.cache_directory import default_cache_directory
from wavelet_core.digests import file_digest
from wavelet_core.kernels import want_single_rows
from wavelet_quant.native_library import LIBRARY, TYPES, instruction_set, library, observed
from wavelet_quant.native_training import NativeTraining
from wavelet_quant.packed_kernel import PackedKernel

SMALLEST_WIDTH = 64  # channels; narrower rows are mostly ends
SMALLEST_TRANSFORM = 16  # channels: a register
SMALLEST_COMPILED = 1 << 18  # entries; below, and in float32, a compiled graph is faster without another operator
ROWS = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # up to which the kernel may be the faster one; the last stands for any number
MEASURED_MATRIX = (2048, 1024)


def _multiply(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False, instructions: int | None = None
) -> Tensor:
    """x weight^T + bias with sums in float32, then GELU where asked; the shapes and types are what `_fits` says."""
    x = x.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    out = x.new_empty((*x.shape[:-1], weight.shape[-2]))
    instructions = instruction_set() if instructions is None else instructions
    library().multiply(*_product(instructions, out, x, weight, bias, gelu))
    return out


def _product(
    instructions: int, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> tuple[Any, ...]:
    """What the library's `multiply` takes, for contiguous tensors."""
    width, height = weight.shape[-1], weight.shape[-2]
    matrices = 1 if weight.dim() == 2 else len(x)
    return (
        instructions,
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


def _transform(x: Tensor, instructions: int | None = None) -> Tensor:
    """The Walsh-Hadamard transforms of the rows of x (..., P), P a power of two of at least SMALLEST_TRANSFORM."""
    x = x.contiguous()
    out = torch.empty_like(x)
    instructions = instruction_set() if instructions is None else instructions
    library().walsh_hadamard(*_transformation(instructions, out, x))
    return out


def _transformation(instructions: int, out: Tensor, x: Tensor) -> tuple[Any, ...]:
    """What the library's `walsh_hadamard` takes, for contiguous tensors."""
    width = x.shape[-1]
    places = x.data_ptr(), out.data_ptr()
    return instructions, TYPES[x.dtype], *places, x.numel() // width, width, torch.get_num_threads()


def _packed_product(
    instructions: int,
    out: Tensor,
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    bits: int,
    gelu: bool,
) -> tuple[Any, ...]:
    """What the library's `multiply_packed` takes, for contiguous tensors."""
    width, groups = x.shape[-1], scales.shape[-2]
    matrices = 1 if values.dim() == 4 else len(x)
    return (
        instructions,
        TYPES[x.dtype],
        bits,
        TYPES[scales.dtype],
        values.data_ptr(),
        scales.data_ptr(),
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        gelu,
        out.data_ptr(),
        matrices,
        x.numel() // (matrices * width),
        width,
        out.shape[-1],
        0 if groups == 1 else width // groups,
        want_single_rows(),
        torch.get_num_threads(),
    )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether shapes and types make a product that the kernel computes, for any number of rows."""
    return (
        x.shape[-1] == weight.shape[-1] > 0
        and x.dtype is weight.dtype
        and weight.dtype in TYPES
        and weight.is_contiguous()
        and (weight.dim() == 2 or (bias is None and x.dim() == weight.dim() == 3 and len(x) == len(weight)))
        and (bias is None or (bias.is_cpu and bias.dtype is weight.dtype and bias.shape == weight.shape[:1]))
    )


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _is_faster(rows: int, dtype: torch.dtype, instructions: int) -> bool:
    """Whether the kernel multiplies so many rows faster than torch."""
    with _disable_current_modes(), torch.inference_mode():
        weight = torch.ones(MEASURED_MATRIX, dtype=dtype)
        x = torch.ones(rows, weight.shape[1], dtype=dtype)
        times = [
            (_seconds(lambda: _multiply(x, weight, None, False, instructions)), _seconds(lambda: F.linear(x, weight)))
            for _ in range(9)
        ]
    ours, torchs = (min(values) for values in zip(*times[1:], strict=True))
    return ours <= torchs


@functools.cache
def _most_rows(dtype: torch.dtype, threads: int, instructions: int) -> int:
    """Up to how many rows the kernel is the faster one: a power of two, or sys.maxsize for any number.

    It is measured once on a machine and remembered in the cache directory: the two differ in rounding, and a text that
    is generated again from its seed has to be the same.
    """
    machine = (platform.node(), platform.machine(), torch.__version__, file_digest(LIBRARY))
    key = json.dumps([*machine, str(dtype), threads, instructions])
    path = default_cache_directory() / "kernels" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):
        known = json.loads(path.read_text("utf-8"))
        if type(known) is int and known in ROWS:
            return sys.maxsize if known == ROWS[-1] else known
    most = next(rows for rows in reversed(ROWS) if rows == 0 or _is_faster(rows, dtype, instructions))
    with suppress(OSError):
        write_atomically(path, lambda file: file.write_text(f"{most}\n", "utf-8"))
    return sys.maxsize if most == ROWS[-1] else most


@torch.compiler.assume_constant_result
def _most_compiled_rows(dtype: torch.dtype, instructions: int) -> int:
    return _most_rows(dtype, torch.get_num_threads(), instructions)


class Native(NativeTraining, PackedKernel):
    """Reads a matrix once for all rows, on a processor, in float32, bfloat16 or float16 or packed, in C++."""

    needs: ClassVar[str] = "the native library, which a C++ compiler makes when wavelet-quant is installed"

    class Config(ComponentConfig):
        kind: Literal["native"] = "native"
        instruction_set: Literal["portable", "avx2", "avx512"] | None = Field(
            default=None, description="what computes; null for the best that the processor has"
        )

    config: Config

    def __init__(self, config: Config):
        super().__init__(config)
        self.instructions = instruction_set(config.instruction_set) if library() else -1

    def available(self) -> bool:
        return self.instructions >= 0

    def accepts(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        return (
            (type(x) is Tensor or torch.compiler.is_compiling())
            and x.is_cpu
            and weight.is_cpu
            and not torch.is_autocast_enabled("cpu")
            and weight.shape[-1] >= SMALLEST_WIDTH
            and _fits(x, weight, bias)
            and self._is_faster(x.numel() // x.shape[-1] if weight.dim() == 2 else x.shape[-2], weight)
        )

    def _is_faster(self, rows: int, weight: Tensor) -> bool:
        if torch.compiler.is_compiling():
            large = weight.numel() >= SMALLEST_COMPILED and weight.dtype is not torch.float32
            return large and rows <= _most_compiled_rows(weight.dtype, self.instructions)
        return rows <= _most_rows(weight.dtype, torch.get_num_threads(), self.instructions)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        if observed():
            return _linear(x, weight, bias, gelu)
        return _multiply(x, weight, bias, gelu, self.instructions)

    def stacked_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if observed():
            return _stacked_linear(x, weight)
        return _multiply(x, weight, None, False, self.instructions)

    def accepts_walsh_hadamard(self, x: Tensor) -> bool:
        return (
            (type(x) is Tensor or torch.compiler.is_compiling())
            and x.is_cpu
            and x.dtype in TYPES
            and x.is_contiguous()
            and x.shape[-1] >= SMALLEST_TRANSFORM
            and (not torch.compiler.is_compiling() or x.numel() >= SMALLEST_COMPILED)
        )

    def walsh_hadamard(self, x: Tensor) -> Tensor:
        return _walsh_hadamard(x) if observed() else _transform(x, self.instructions)

    def accepts_packed(self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int) -> bool:
        return x.is_cpu and values.is_cpu and x.dtype in TYPES and scales.dtype in TYPES

    def packed_linear(
        self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
    ) -> Tensor:
        x, values, scales = x.contiguous(), values.contiguous(), scales.contiguous()
        if bias is not None:
            bias = bias.to(x.dtype).contiguous()
        out = x.new_empty((*x.shape[:-1], height))
        if out.numel():
            library().multiply_packed(*_packed_product(self.instructions, out, x, values, scales, bias, bits, gelu))
        return out

    def bound(self, operator: Any, out: Tensor, *arguments: Any, **keywords: Any) -> Callable[[], Any] | None:
        tensors = [each for each in (out, *arguments) if isinstance(each, Tensor)]
        if keywords or not all(tensor.is_contiguous() and tensor.numel() for tensor in tensors):
            return None
        if operator in (_linear, _stacked_linear):
            return functools.partial(library().multiply, *_product(self.instructions, out, *arguments))
        if operator is _walsh_hadamard:
            return functools.partial(library().walsh_hadamard, *_transformation(self.instructions, out, *arguments))
        if operator is torch.ops.wavelet_quant.packed_linear.default:
            x, values, scales, bias, bits, _, gelu = arguments
            if (bias is None or bias.dtype is x.dtype) and self.accepts_packed(x, values, scales, bias, bits):
                product = _packed_product(self.instructions, out, x, values, scales, bias, bits, gelu)
                return functools.partial(library().multiply_packed, *product)
        return None


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
UNOBSERVED: dict[Any, Callable[..., Tensor]] = {}  # what runs in the place of an operator that nobody observes
for _operator in (_linear, _stacked_linear):
    UNOBSERVED[_operator] = _multiply
    _operators.impl(_operator, _checked, "CPU")
    _operators.impl(_operator, functools.partial(_autocast, _operator), "AutocastCPU")
    torch.library.register_fake(_operator, _shape, lib=_operators)

_operators.define("walsh_hadamard(Tensor x) -> Tensor")
_walsh_hadamard = torch.ops.wavelet_quant.walsh_hadamard.default
_operators.impl(_walsh_hadamard, _transform, "CPU")
torch.library.register_fake(_walsh_hadamard, torch.empty_like, lib=_operators)
