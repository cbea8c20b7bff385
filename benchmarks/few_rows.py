"""The native kernel for few vectors times a large matrix, against torch and against the read bandwidth.

Decoding a token multiplies every weight with one vector, verifying a guess or decoding a small batch with a few. For
each type and number of vectors this prints how much of the read bandwidth, measured in the same run, the kernel and
torch reach (the bytes of the matrix, read once, over the time), and how many times as fast the kernel is. The matrices
of a shape are 256 MB together, so that no cache holds them. What is compared takes turns; medians are printed.

    python benchmarks/few_rows.py [--shape 2048x2048] [--rows 1 2 4 5 8 16 32] [--rounds 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_quant.decode_benchmark import ReadBandwidth, seconds
from wavelet_quant.few_rows import FewRows

BYTES = 1 << 28
KERNEL = FewRows(FewRows.Config())


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, taking turns; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


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

    works = {
        "read": bandwidth.buffer.sum,
        "torch": all_of(F.linear),
        "kernel": all_of(lambda x, weight: KERNEL.linear(x, weight, None, False)),
    }
    times = medians(works, rounds)
    limit = len(weights) * size / (bandwidth.buffer.nbytes / times["read"])
    share = {name: limit / times[name] for name in ("torch", "kernel")}
    return (
        f"{str(dtype).removeprefix('torch.'):9} {height:6} x {width:<5} {rows:3} rows: of the read bandwidth torch "
        f"{share['torch']:4.0%}, kernel {share['kernel']:4.0%}; {times['torch'] / times['kernel']:.1f} times as fast"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["50257x512", "2048x2048"], help="height x width")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 5, 8, 16, 32])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not KERNEL.available():
        raise SystemExit("the native kernel is not installed here")
    bandwidth = ReadBandwidth(torch.device("cpu"))
    for dtype in options.dtype:
        for shape in options.shape:
            for rows in options.rows:
                height, width = map(int, shape.split("x"))
                print(measure(height, width, getattr(torch, dtype), rows, options.rounds, bandwidth), flush=True)


if __name__ == "__main__":
    main()
