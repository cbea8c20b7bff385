"""Data sets, tokenizers, optimizers, the trainer and evaluation for WaveletLM."""

from importlib.metadata import version
from pathlib import Path

__version__ = version("wavelet-train")
PRESETS = Path(__file__).with_name("presets")
