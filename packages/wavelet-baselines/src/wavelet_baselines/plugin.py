"""What `wavelet-baselines` brings: four model families."""

from __future__ import annotations

from collections.abc import Callable

from wavelet_baselines.gated_delta_net import GatedDeltaNet
from wavelet_baselines.lstm import LSTM
from wavelet_baselines.mamba2 import Mamba2
from wavelet_baselines.transformer import Transformer
from wavelet_core.plugins import hookimpl


@hookimpl
def register_components(register: Callable[[str, type], None]) -> None:
    for family in (Transformer, Mamba2, GatedDeltaNet, LSTM):
        register("model", family)
