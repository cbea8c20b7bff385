"""wavelet-quant's components, registered through the hook that everybody uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wavelet_core import hookimpl
from wavelet_quant.dense_format import Dense
from wavelet_quant.native_kernel import Native
from wavelet_quant.packed_formats import Int2, Int4, Int8
from wavelet_quant.quantizer import RecipeQuantizer
from wavelet_quant.reference_kernel import Reference
from wavelet_quant.triton_kernel import Triton


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    for weight_format in (Dense, Int8, Int4, Int2):
        register("format", weight_format)
    register("quantizer", RecipeQuantizer)
    for kernel in (Native, Reference, Triton):
        register("kernel", kernel)


@hookimpl
def register_contracts(register: Callable[[str, Any], None]) -> None:
    from wavelet_quant.testing.format_contract import FORMAT_CHECKS
    from wavelet_quant.testing.kernel_contract import KERNEL_CHECKS

    register("format", FORMAT_CHECKS)
    register("kernel", KERNEL_CHECKS)
