"""Samplers: components of kind `sampler` that reshape the model's logits before a token is drawn."""

from wavelet_core.generation.samplers.coherence import WaveletCoherence
from wavelet_core.generation.samplers.repetition import RepetitionPenalty
from wavelet_core.generation.samplers.sampler import Sampler
from wavelet_core.generation.samplers.temperature import EntropyAdaptive, Temperature
from wavelet_core.generation.samplers.truncation import MinP, TopK, TopP

__all__ = [
    "EntropyAdaptive",
    "MinP",
    "RepetitionPenalty",
    "Sampler",
    "Temperature",
    "TopK",
    "TopP",
    "WaveletCoherence",
]
