"""Data sets, tokenizers, optimizers, the trainer and evaluation for WaveletLM."""

from importlib.metadata import version

__version__ = version("wavelet-train")
