"""Weight formats for WaveletLM and the kernels that multiply with them."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wavelet-quant")
except PackageNotFoundError:
    __version__ = "0+unknown"

from wavelet_quant.int8 import Int8, Int8Matrix, quantize_int8, weight_bytes

__all__ = ["Int8", "Int8Matrix", "quantize_int8", "weight_bytes"]
