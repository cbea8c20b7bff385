"""The Triton kernel: in Triton's interpreter it multiplies as it should; without a device it is compiled for CUDA."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from wavelet_core import ConfigurationError
from wavelet_core.kernels import use_kernel
from wavelet_quant.triton_kernel import Triton

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed here")

# The interpreter takes milliseconds for a tile: fewer products than other kernels are asked for.
CONTRACT = """
from wavelet_core.testing import check_component
from wavelet_quant.testing import kernel_contract
from wavelet_quant.triton_kernel import Triton

class Interpreted(Triton):
    def available(self):
        return True

    def accepts_packed(self, x, values, scales, bias, bits):
        return True

kernel_contract.ROWS = (1, 70)
kernel_contract.FORMS = ("gelu", "stack")
check_component(Interpreted, kind="kernel")
"""

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from wavelet_quant.packed import OFFSETS
from wavelet_quant.triton_product import _multiply_tile, constants

for bits in OFFSETS:
    for name, rows in (("fp32", 1), ("bf16", 1), ("fp16", 70)):
        chosen = constants(rows, bits, group=32)
        chosen |= {"has_bias": True, "gelu": True, "widen": False}
        signature = dict.fromkeys(_multiply_tile.arg_names, "i32") | dict.fromkeys(chosen, "constexpr")
        signature |= dict.fromkeys(("x", "bias", "out"), f"*{name}") | {"words": "*i32", "scales": "*fp16"}
        made = compile(ASTSource(_multiply_tile, signature, chosen), target=GPUTarget("cuda", 80, 32))
        assert made.asm["cubin"] and ("mma" in made.asm["ptx"]) == (name != "fp32")
"""


def run(program, tmp_path, **environment):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_triton
def test_it_keeps_the_contract_in_the_interpreter(tmp_path):
    run(CONTRACT, tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
@needs_triton
def test_it_is_compiled_for_cuda(tmp_path):
    run(COMPILE, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_it_is_refused_without_a_device():
    assert not Triton(Triton.Config()).available()
    with pytest.raises(ConfigurationError, match="cannot run the kernel 'triton': it needs a CUDA device and Triton"):
        use_kernel("triton")
