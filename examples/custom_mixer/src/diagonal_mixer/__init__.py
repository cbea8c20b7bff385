"""Mixers that scale channels instead of mixing them: an example of a WaveletLM plugin."""

from diagonal_mixer.mixers import DiagonalMixer, IdentityMixer

__all__ = ["DiagonalMixer", "IdentityMixer"]
