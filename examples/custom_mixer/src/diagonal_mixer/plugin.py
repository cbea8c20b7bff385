"""The module that the entry point names: it tells WaveletLM what this package brings."""

from collections.abc import Callable

from diagonal_mixer.mixers import DiagonalMixer, IdentityMixer
from wavelet_core import hookimpl


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    register("mixer", DiagonalMixer)
    register("mixer", IdentityMixer)
