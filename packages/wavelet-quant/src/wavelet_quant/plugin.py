"""wavelet-quant's components, registered through the hook that everybody uses."""

from __future__ import annotations

from collections.abc import Callable

from wavelet_core import hookimpl
from wavelet_quant.int8 import Int8
from wavelet_quant.native_kernel import Native
from wavelet_quant.reference_kernel import Reference


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    register("format", Int8)
    for kernel in (Native, Reference):
        register("kernel", kernel)
