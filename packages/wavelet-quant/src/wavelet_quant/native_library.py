"""The native library: what C++ computes for this package, for every instruction set in one file.

It is built when wavelet-quant is installed, where there is a C++ compiler. Which instruction set computes is decided
when it is first used, by what the processor has; a kernel's configuration names another, or else the environment
variable WAVELET_INSTRUCTION_SET.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavelet_core.config import ConfigurationError

LIBRARY = Path(__file__).with_name("native") / "libwavelet_native.so"
INSTRUCTION_SETS = ("portable", "avx2", "avx512")  # the best one last
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # by their numbers in the library
VARIABLE = "WAVELET_INSTRUCTION_SET"


@functools.cache
def library() -> Any:
    """The loaded library, or None where it was not built."""
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    integer, address, long, real = ctypes.c_int, ctypes.c_void_p, ctypes.c_long, ctypes.c_float
    loaded.multiply.argtypes = [integer, integer, address, address, address, integer, address, *[long] * 5]
    loaded.multiply.restype = None
    loaded.multiply_packed.argtypes = [*[integer] * 4, *[address] * 4, integer, address, *[long] * 5, integer, long]
    loaded.multiply_packed.restype = None
    loaded.walsh_hadamard.argtypes = [integer, integer, address, address, *[long] * 3]
    loaded.walsh_hadamard.restype = None
    loaded.elementwise.argtypes = [integer, integer, integer, *[address] * 5, long, long]
    loaded.elementwise.restype = None
    loaded.cross_entropy.argtypes = [integer, integer, *[address] * 3, long, long, real, long]
    loaded.cross_entropy.restype = None
    loaded.gelu_gradients.argtypes = [integer, integer, address, address, real, address, address, *[long] * 3]
    loaded.gelu_gradients.restype = None
    looks: list[Any] = [address, long, long, real, real]
    loaded.blend.argtypes = [integer, integer, address, address, *looks, address, *[long] * 4, address, address]
    loaded.blend.restype = None
    loaded.best_pairs.argtypes = [integer, integer, *[address] * 6, *[long] * 6]
    loaded.best_pairs.restype = None
    loaded.read_gradients.argtypes = [integer, *[address] * 6, *[long] * 4]
    loaded.read_gradients.restype = None
    loaded.delta_rule.argtypes = [integer, *[address] * 9, *[long] * 6, *[address] * 7]
    loaded.delta_rule.restype = None
    loaded.read_bytes.argtypes = [integer, address, long, long]
    return loaded


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Those that the library was built with and this processor has."""
    loaded = library()
    return tuple(name for i, name in enumerate(INSTRUCTION_SETS) if loaded and loaded.has_instruction_set(i))


def instruction_set(name: str | None = None) -> int:
    """The number of the instruction set to use: `name`, else the one named by WAVELET_INSTRUCTION_SET, else the best.

    Raises ConfigurationError where the processor or the library lacks it.
    """
    field = "instruction_set" if name else VARIABLE
    name = name or os.environ.get(VARIABLE) or instruction_sets()[-1]
    if name not in instruction_sets():
        raise ConfigurationError(
            f"{field}={name}: this processor and the library that was built have {', '.join(instruction_sets())}"
        )
    return INSTRUCTION_SETS.index(name)


def read(memory: Tensor) -> None:
    """Read a contiguous tensor with all threads as fast as the kernels could."""
    library().read_bytes(instruction_set(), memory.data_ptr(), memory.nbytes, torch.get_num_threads())


def observed() -> bool:
    """Whether somebody wants to see operators: the compiler, the profiler or a dispatch mode.

    Starting an operator that is written in Python takes a third of the time of a small product, so nobody else pays it.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._autograd._profiler_enabled()
    )
