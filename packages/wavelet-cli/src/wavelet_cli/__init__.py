"""The wavelet command: train, generate from, inspect and configure WaveletLM models."""

from importlib.metadata import version

PACKAGES = ("wavelet-core", "wavelet-memory", "wavelet-quant", "wavelet-train", "wavelet-cli")
# Ours as well, but `wavelet` does not need them.
PLUGINS = ("wavelet-baselines", "wavelet-ecosystem")
__version__ = version("wavelet-cli")
