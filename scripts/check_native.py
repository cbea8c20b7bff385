"""Check an installed wavelet-quant: its native library multiplies right, on any number of threads, and decodes.

`make release` runs this in the environment that it has installed the wheel in, and cibuildwheel in one of its own.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

import wavelet_quant
from wavelet_core import ModelConfig, build_model, use_kernel
from wavelet_core.generation import DecodingSession, GenerationSettings, generate
from wavelet_quant import native_library
from wavelet_quant.native_kernel import Native


def openmp_runtimes() -> set[str]:
    """The OpenMP libraries that this process has loaded, where the system tells."""
    maps = Path("/proc/self/maps")
    return set(re.findall(r"/\S*lib[gi]?omp\S*", maps.read_text())) if maps.exists() else set()


def check_products(name: str) -> None:
    kernel = Native(Native.Config(instruction_set=name))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        weight = (torch.randn(301, 515) / 23).to(dtype)
        x = torch.randn(5, 515).to(dtype)
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(kernel.linear(x, weight, None, False))
        assert all(torch.equal(result, results[0]) for result in results), f"{name}: threads change {dtype} products"
        torch.testing.assert_close(results[0], F.linear(x, weight), atol=tolerance, rtol=tolerance)


def check_decoding(kernel: str) -> list[int]:
    use_kernel(kernel)
    torch.manual_seed(0)
    model = build_model(ModelConfig(vocabulary_size=300, width=256, layers=1, levels=2)).eval()
    wavelet_quant.quantize(model, "int8")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = type(model).from_pretrained(folder).eval()
    settings = GenerationSettings(tokens=20, samplers=[{"kind": "temperature", "temperature": 0}])
    return [token.token for token in generate(DecodingSession(model), [[1, 2, 3]], settings, seeds=[0])]


def main() -> None:
    if not native_library.instruction_sets():
        sys.exit("the native library is missing, or could not be loaded")
    for name in native_library.instruction_sets():
        check_products(name)
    runtimes = openmp_runtimes()
    assert len(runtimes) <= 1, f"more than one OpenMP runtime is loaded: {', '.join(sorted(runtimes))}"
    written = check_decoding("native")
    assert len(written) == 20
    print(f"  instruction sets {', '.join(native_library.instruction_sets())}; OpenMP {runtimes or 'unknown'}")
    print(f"  {native_library.LIBRARY}: products and {len(written)} decoded tokens are right")


if __name__ == "__main__":
    main()
