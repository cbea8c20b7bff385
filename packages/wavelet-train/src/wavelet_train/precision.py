"""Arithmetic of training and evaluation: which type autocast computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]

# Names that torch.cpu.get_capabilities() uses for bfloat16 arithmetic: AVX-512, AMX, Arm.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulation is slower than float32."""
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type to compute in: `auto` is bfloat16 where it is native and float32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    resolved: torch.dtype = getattr(torch, precision)
    return resolved


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context in which matrix products run in `dtype`; weights stay float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
