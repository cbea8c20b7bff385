"""Fast-weight updates over a long document: the closed form against autograd through the dense table of deltas.

Both sides read and update chunk by chunk with the same queries and addresses, one after the other and in alternating
order, each with its own deltas. Prints the median time of a chunk on each side, the median of the paired ratios, and
how far the two tables of deltas and the reads are apart at the end.

    python benchmarks/fast_weight_update.py [--positions 4096] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core import ModelShape
from wavelet_memory import FastWeightProductKeyMemory
from wavelet_memory.fast_weight_update import update_deltas

WIDTH = 512
NUM_KEYS = 16384
TOP_K = 32
LEARNING_RATE = 500.0  # steps large enough that the reads visibly change
CHUNK_SIZES = (8, 16, 64)


def dense_step(deltas: Tensor, q: Tensor, slow: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Read one chunk and update by autograd; a gradient as large as the table."""
    deltas.requires_grad_()
    read = slow + F.embedding_bag(row, deltas, per_sample_weights=weight, mode="sum")
    (gradient,) = torch.autograd.grad(F.mse_loss(read[:-1], q[1:]), deltas)
    deltas.requires_grad_(False).sub_(gradient, alpha=LEARNING_RATE)
    return read.detach()


def sparse_step(deltas: Tensor, q: Tensor, slow: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Read one chunk and update in closed form; only the rows that were read are touched."""
    read = slow + F.embedding_bag(row, deltas, per_sample_weights=weight, mode="sum")
    update_deltas(deltas, q, read, row, weight, LEARNING_RATE)
    return read


def timed(step: Callable[..., Tensor], *arguments: Tensor) -> tuple[float, Tensor]:
    begin = time.perf_counter()
    read = step(*arguments)
    return time.perf_counter() - begin, read


def compare(memory: FastWeightProductKeyMemory, document: Tensor, chunk_size: int) -> str:
    """One line of the table: both sides over the document in chunks of one size."""
    dense, sparse = torch.zeros_like(memory.values.weight), torch.zeros_like(memory.values.weight)
    seconds: list[tuple[float, float]] = []
    difference = 0.0
    for index, q in enumerate(document.split(chunk_size)):
        with torch.no_grad():
            row, weight = memory.address(q[None])
            slow = memory.read(row, weight)[0]
        inputs = (q, slow, row[0], weight[0])
        if index % 2:
            (first, dense_read), (second, sparse_read) = (
                timed(dense_step, dense, *inputs),
                timed(sparse_step, sparse, *inputs),
            )
        else:
            (second, sparse_read), (first, dense_read) = (
                timed(sparse_step, sparse, *inputs),
                timed(dense_step, dense, *inputs),
            )
        seconds.append((first, second))
        difference = max(difference, (dense_read - sparse_read).abs().max().item())
    dense_time, sparse_time = (1e3 * statistics.median(side) for side in zip(*seconds, strict=True))
    ratio = statistics.median(first / second for first, second in seconds)
    deltas = (dense - sparse).abs().max().item()
    return (
        f"{chunk_size:>5} {len(seconds):>7} {dense_time:>10.2f} {sparse_time:>10.3f} {ratio:>7.1f}x "
        f"{deltas:>12.1e} {difference:>12.1e} {sparse.abs().max().item():>10.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--positions", type=int, default=4096, help="length of the document")
    parser.add_argument("--threads", type=int, default=1, help="processor threads for torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = FastWeightProductKeyMemory.Config(num_keys=NUM_KEYS, top_k=TOP_K, inference_updates=True)
    memory = FastWeightProductKeyMemory(config, ModelShape(width=WIDTH, levels=1))
    document = torch.randn(options.positions, WIDTH)
    print(f"{NUM_KEYS} keys, top {TOP_K}, C = {WIDTH}, {options.positions} positions, float32")
    print("chunk  chunks   dense ms  closed ms    ratio  deltas diff    reads diff  max delta")
    for chunk_size in CHUNK_SIZES:
        print(compare(memory, document, chunk_size))


if __name__ == "__main__":
    main()
