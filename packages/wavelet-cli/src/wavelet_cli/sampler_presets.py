"""The order in which options for samplers are applied, and a recipe of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A list of samplers in a configuration has its own order.
SAMPLER_ORDER = (
    "repetition_penalty",
    "wavelet_coherence",
    "entropy_adaptive",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
)

# `strategies`: the published recipe for readable samples, which goes with spacing cleanup and metrics.
STRATEGIES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"penalty": 1.2},
    "entropy_adaptive": {"maximum": 0.9},
    "top_p": {"p": 0.85},
}


def in_order(samplers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The list of samplers, in SAMPLER_ORDER, for some of them by name with their fields."""
    return [{"kind": name, **samplers[name]} for name in SAMPLER_ORDER if name in samplers]
