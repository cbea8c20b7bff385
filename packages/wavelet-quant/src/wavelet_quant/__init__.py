"""Weight formats for WaveletLM and the kernels that multiply with them."""

from importlib.metadata import version

from wavelet_quant.int8 import Int8, Int8Matrix, quantize_int8, weight_bytes

__version__ = version("wavelet-quant")
__all__ = ["Int8", "Int8Matrix", "quantize_int8", "weight_bytes"]
