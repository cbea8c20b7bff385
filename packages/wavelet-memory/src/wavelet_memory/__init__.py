"""Product-key, fast-weight product-key and gated delta memories for WaveletLM."""

from importlib.metadata import version

from wavelet_memory.fast_weight import FastWeightProductKeyMemory, learn_while_reading
from wavelet_memory.gated_delta import GatedDeltaMemory
from wavelet_memory.product_key import ProductKeyMemory

__version__ = version("wavelet-memory")
__all__ = ["FastWeightProductKeyMemory", "GatedDeltaMemory", "ProductKeyMemory", "learn_while_reading"]
