"""Model families to compare WaveletLM with, each small, readable and complete."""

from importlib.metadata import version

from wavelet_baselines.gated_delta_net import GatedDeltaNet
from wavelet_baselines.lstm import LSTM
from wavelet_baselines.mamba2 import Mamba2
from wavelet_baselines.transformer import Transformer

__all__ = ["LSTM", "GatedDeltaNet", "Mamba2", "Transformer"]
__version__ = version("wavelet-baselines")
