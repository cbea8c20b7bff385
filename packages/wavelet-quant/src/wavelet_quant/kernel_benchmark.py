"""How fast the native kernel multiplies: by format, shape, number of rows and instruction set, against torch.

What is compared takes turns, and medians of the ratios to the reading loop and to torch of the same turn are reported.
The matrices of a shape fill more memory than any cache holds and are multiplied one after the other.
"""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.config import ComponentOf, ConfigurationError
from wavelet_core.messages import shown
from wavelet_core.registry import build
from wavelet_quant.decode_benchmark import ReadBandwidth, seconds
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_set, instruction_sets
from wavelet_quant.packed import PackedMatrix
from wavelet_quant.weight_format import WeightFormat

DENSE = ("float32", "bfloat16", "float16")
PACKED = ("int8", "int4", "int2")
FORMATS = (*DENSE, *PACKED)
PACKED_X = torch.bfloat16  # what packed matrices are multiplied with
FILLED = 1 << 28  # bytes that the matrices of a shape fill
MULTIPLIED = 1 << 31  # products of two numbers after which a turn ends


@dataclass(frozen=True)
class KernelMeasurement:
    """What one way of computing a product reached.

    by: "torch", which multiplies the dense matrix in x's type, or an instruction set. seconds: of one product.
    bandwidth: bytes of the matrix, as it is stored, a second. share: of the read bandwidth. over_torch: how many times
    as fast as torch.
    """

    format: str
    height: int
    width: int
    rows: int
    by: str
    seconds: float
    bandwidth: float
    share: float
    over_torch: float


def kernel_benchmark(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    formats: Sequence[str] = FORMATS,
    sets: Sequence[str] | None = None,
    rounds: int = 5,
) -> Iterator[list[KernelMeasurement]]:
    """Measure products of matrices (height, width) with numbers of rows, one list for each after the other.

    sets: instruction sets, by default all that this processor and the library have.

    Raises ConfigurationError for a format or an instruction set that there is not, and where there is no library.
    """
    if not instruction_sets():
        raise ConfigurationError(f"the kernel benchmark needs {Native.needs}")
    kernels = {name: Native(Native.Config(instruction_set=_known(name))) for name in sets or instruction_sets()}
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ConfigurationError(f"formats: unknown format {shown(unknown[0])}; known: {', '.join(FORMATS)}")
    for format, shape in itertools.product(formats, shapes):
        if format in PACKED and not _format(format).fits(torch.Size(shape)):
            raise ConfigurationError(f"shapes: {shape[0]}x{shape[1]} does not fit the groups of {format}")
    bandwidth = ReadBandwidth(torch.device("cpu"))
    for format, (height, width) in itertools.product(formats, shapes):
        ways = _ways(format, height, width, kernels)
        for count in rows:
            yield _measure(format, height, width, count, ways, rounds, bandwidth)


def _known(name: str) -> Any:
    instruction_set(name)
    return name


@dataclass
class _Way:
    """One way of computing: products with matrices that take turns, each of `size` bytes."""

    products: Iterator[Callable[[Tensor], Tensor]]
    count: int
    size: int
    dtype: torch.dtype


def _ways(format: str, height: int, width: int, kernels: dict[str, Native]) -> dict[str, _Way]:
    weight = torch.randn(height, width) * width**-0.5
    dtype = getattr(torch, format) if format in DENSE else PACKED_X
    dense = _filling(weight.to(dtype))
    ways = {"torch": _way(dense, dtype, F.linear)}
    if format in DENSE:
        for name, kernel in kernels.items():
            ways[name] = _way(dense, dtype, functools.partial(_dense_product, kernel))
        return ways
    packed = _filling(_format(format).store(weight))
    for name, kernel in kernels.items():
        ways[name] = _way(packed, dtype, functools.partial(_packed_product, kernel))
    return ways


def _format(name: str) -> WeightFormat:
    made: WeightFormat = build("format", ComponentOf("format").resolve(name))
    return made


def _dense_product(kernel: Native, x: Tensor, matrix: Tensor) -> Tensor:
    return kernel.linear(x, matrix, None, False)


def _packed_product(kernel: Native, x: Tensor, matrix: PackedMatrix) -> Tensor:
    return kernel.packed_linear(x, matrix.values, matrix.scales, None, matrix.bits, matrix.height, False)


def _size(matrix: Any) -> int:
    return matrix.nbytes if isinstance(matrix, Tensor) else sum(buffer.nbytes for buffer in matrix.buffers())


def _filling(matrix: Any) -> list[Any]:
    """Copies of a matrix that together fill memory."""
    return [matrix, *(copy.deepcopy(matrix) for _ in range(FILLED // _size(matrix) - 1))]


def _way(matrices: list[Any], dtype: torch.dtype, product: Callable[[Tensor, Any], Tensor]) -> _Way:
    products = [lambda x, matrix=matrix: product(x, matrix) for matrix in matrices]
    return _Way(itertools.cycle(products), len(matrices), _size(matrices[0]), dtype)


@torch.inference_mode()
def _measure(
    format: str, height: int, width: int, rows: int, ways: dict[str, _Way], rounds: int, bandwidth: ReadBandwidth
) -> list[KernelMeasurement]:
    inputs = {way.dtype: torch.randn(rows, width).to(way.dtype) for way in ways.values()}
    reads: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):  # the first one wakes threads and fills what is kept between calls
        reads.append(bandwidth.measure())
        for name, way in ways.items():
            x, count = inputs[way.dtype], max(1, min(way.count, MULTIPLIED // (rows * height * width)))
            products = list(itertools.islice(way.products, count))
            times[name].append(seconds(lambda: [product(x) for product in products]) / count)  # noqa: B023
    measured = []
    for name, way in ways.items():
        own = times[name][1:]
        time = statistics.median(own)
        measured.append(
            KernelMeasurement(
                format=format,
                height=height,
                width=width,
                rows=rows,
                by=name,
                seconds=time,
                bandwidth=way.size / time,
                share=statistics.median(way.size / t / read for t, read in zip(own, reads[1:], strict=True)),
                over_torch=statistics.median(torchs / t for t, torchs in zip(own, times["torch"][1:], strict=True)),
            )
        )
    return measured
