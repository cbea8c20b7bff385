"""The wavelet command: train, generate from, inspect and configure WaveletLM models."""

from importlib.metadata import version

__version__ = version("wavelet-cli")
