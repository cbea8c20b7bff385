"""Post-training quantization for WaveletLM."""

from importlib.metadata import version

__version__ = version("wavelet-quant")
