"""The native kernel for few vectors times a large matrix, against torch and against the read bandwidth.

Decoding a token multiplies every weight with one vector, verifying a guess or decoding a small batch with a few. For
each type and number of vectors this prints how much of the read bandwidth torch and each instruction set of the kernel
reach: the bytes of the matrices, read once, over the time. The matrices of a shape are 256 MB together, so that no
cache holds them, and the bandwidth is measured by the native library's own reading loop. What is compared takes turns;
medians of the ratios to the reading loop of the same turn are printed.

    python benchmarks/native_kernel.py [--shape 2048x2048] [--rows 1 2 4] [--dtype bfloat16] [--rounds 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_quant.decode_benchmark import ReadBandwidth, seconds
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_sets

BYTES = 1 << 28
ROWS = [1, 2, 3, 5, 7, 12, 13, 16, 33, 64, 65]


@torch.inference_mode()
def measure(height: int, width: int, dtype: torch.dtype, rows: int, rounds: int, bandwidth: ReadBandwidth) -> str:
    size = height * width * dtype.itemsize
    weights = [torch.randn(height, width).to(dtype) for _ in range(max(1, BYTES // size))]
    x = torch.randn(rows, width).to(dtype)

    def all_of(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def work() -> None:
            for weight in weights:
                product(x, weight)

        return work

    works = {"torch": all_of(F.linear)}
    for name in instruction_sets():
        kernel = Native(Native.Config(instruction_set=name))
        works[name] = all_of(lambda x, weight, kernel=kernel: kernel.linear(x, weight, None, False))
    shares: dict[str, list[float]] = {name: [] for name in works}
    reads = []
    for _ in range(rounds + 1):
        reads.append(bandwidth.measure())
        for name, work in works.items():
            shares[name].append(len(weights) * size / seconds(work) / reads[-1])
    reached = ", ".join(f"{name} {statistics.median(values[1:]):4.0%}" for name, values in shares.items())
    return (
        f"{str(dtype).removeprefix('torch.'):9} {height:6} x {width:<5} {rows:3} rows: {reached} "
        f"of {statistics.median(reads[1:]) / 1e9:.1f} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["2048x2048"], help="height x width")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not instruction_sets():
        raise SystemExit("the native library is not installed here")
    bandwidth = ReadBandwidth(torch.device("cpu"))
    for dtype in options.dtype:
        for shape in options.shape:
            for rows in options.rows:
                height, width = map(int, shape.split("x"))
                print(measure(height, width, getattr(torch, dtype), rows, options.rounds, bandwidth), flush=True)


if __name__ == "__main__":
    main()
