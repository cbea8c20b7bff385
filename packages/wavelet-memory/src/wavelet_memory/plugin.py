"""What `wavelet-memory` brings: the product-key memories and the gated delta memory."""

from __future__ import annotations

from collections.abc import Callable

from wavelet_core.plugins import hookimpl
from wavelet_memory.fast_weight import FastWeightProductKeyMemory
from wavelet_memory.gated_delta import GatedDeltaMemory
from wavelet_memory.product_key import ProductKeyMemory


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    for memory in (ProductKeyMemory, FastWeightProductKeyMemory, GatedDeltaMemory):
        register("memory", memory)
