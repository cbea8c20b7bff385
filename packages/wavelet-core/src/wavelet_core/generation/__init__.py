"""Generation: prefill, then one token at a time at a constant cost (docs/model.md, section 10).

`generate` yields tokens and text as they come, `collect` gathers them, `GenerationSettings` says how.
"""

from wavelet_core.generation.compiled import CompiledSteps
from wavelet_core.generation.completion import Completion, collect
from wavelet_core.generation.drafts import ModelDrafts, NgramDrafts
from wavelet_core.generation.engine import Token, generate
from wavelet_core.generation.metrics import text_drift, text_metrics
from wavelet_core.generation.samplers import Sampler
from wavelet_core.generation.sampling import GenerationError
from wavelet_core.generation.settings import (
    SAMPLER_ORDER,
    STRATEGIES,
    GenerationSettings,
    LookaheadSettings,
    in_order,
)
from wavelet_core.generation.spacing import SpacingStream, clean_spacing

__all__ = [
    "SAMPLER_ORDER",
    "STRATEGIES",
    "CompiledSteps",
    "Completion",
    "GenerationError",
    "GenerationSettings",
    "LookaheadSettings",
    "ModelDrafts",
    "NgramDrafts",
    "Sampler",
    "SpacingStream",
    "Token",
    "clean_spacing",
    "collect",
    "generate",
    "in_order",
    "text_drift",
    "text_metrics",
]
