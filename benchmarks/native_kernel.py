"""The native kernel for few vectors times a large matrix, against torch and against the read bandwidth.

Decoding a token multiplies every weight with one vector, verifying a guess or decoding a small batch with a few. For
each format and number of vectors this prints how much of the read bandwidth torch and each instruction set of the
kernel reach: the bytes of the matrices, read once, over the time; torch multiplies packed matrices after unpacking
them. The matrices of a shape are 256 MB together, so that no cache holds them, and the bandwidth is measured by the
native library's own reading loop. What is compared takes turns; medians of the ratios to the reading loop of the same
turn are printed.

    python benchmarks/native_kernel.py [--shape 2048x2048] [--rows 1 2 4] [--formats bfloat16 int4] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core import kernels
from wavelet_quant.decode_benchmark import ReadBandwidth, seconds
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_sets
from wavelet_quant.packed import PackedMatrix

BYTES = 1 << 28
ROWS = [1, 2, 3, 5, 7, 12, 13, 16, 33, 64, 65]


PACKED = {"int8": (8, None), "int4": (4, 64), "int2": (2, 64)}  # bits and group


@contextmanager
def instructions(name: str) -> Iterator[None]:
    """Compute with one instruction set, or with torch."""
    before = kernels._chosen[:]
    kernels._chosen[:] = [() if name == "torch" else (Native(Native.Config(instruction_set=name)),)]
    try:
        yield
    finally:
        kernels._chosen[:] = before


def products(height: int, width: int, format: str, rows: int) -> tuple[list[Callable[[], Tensor]], int]:
    """Products with matrices of one shape that together fill BYTES, and how many bytes these have."""
    weight = torch.randn(height, width)
    if format in PACKED:
        bits, group = PACKED[format]
        packed = PackedMatrix.quantized(weight, bits, group)
        x = torch.randn(rows, width).to(torch.bfloat16)
        size = packed.values.nbytes + packed.scales.nbytes
        matrices = [copy.deepcopy(packed) for _ in range(max(1, BYTES // size))]
        return [lambda matrix=matrix: matrix(x) for matrix in matrices], size * len(matrices)
    dtype = getattr(torch, format)
    x = torch.randn(rows, width).to(dtype)
    size = height * width * dtype.itemsize
    weights = [weight.to(dtype, copy=True) for _ in range(max(1, BYTES // size))]

    def product(weight: Tensor) -> Tensor:
        active = kernels.active_kernels()
        return active[0].linear(x, weight, None, False) if active else F.linear(x, weight)

    return [lambda weight=weight: product(weight) for weight in weights], size * len(weights)


@torch.inference_mode()
def measure(height: int, width: int, format: str, rows: int, rounds: int, bandwidth: ReadBandwidth) -> str:
    work, size = products(height, width, format, rows)
    shares: dict[str, list[float]] = {name: [] for name in ("torch", *instruction_sets())}
    reads = []
    for _ in range(rounds + 1):
        reads.append(bandwidth.measure())
        for name, values in shares.items():
            with instructions(name):
                values.append(size / seconds(lambda: [product() for product in work]) / reads[-1])
    reached = ", ".join(f"{name} {statistics.median(values[1:]):4.0%}" for name, values in shares.items())
    return (
        f"{format:9} {height:6} x {width:<5} {rows:3} rows: {reached} of {statistics.median(reads[1:]) / 1e9:.1f} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["2048x2048"], help="height x width")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--formats", nargs="+", default=["float32", "bfloat16", *PACKED])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not instruction_sets():
        raise SystemExit("the native library is not installed here")
    bandwidth = ReadBandwidth(torch.device("cpu"))
    for format in options.formats:
        for shape in options.shape:
            for rows in options.rows:
                height, width = map(int, shape.split("x"))
                print(measure(height, width, format, rows, options.rounds, bandwidth), flush=True)


if __name__ == "__main__":
    main()
