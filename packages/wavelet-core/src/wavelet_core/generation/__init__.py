"""Generation: prefill, then one token at a time at a constant cost (docs/model.md, section 10).

A `Batch` holds `Request`s and gives each its next `Token` at every step. `generate` runs prompts through a batch and
yields tokens and text as they come, `collect` gathers them. A `DecodingSession` is the model made ready.
"""

from wavelet_core.generation.batch import Batch
from wavelet_core.generation.compiled_files import compile_steps, load_steps
from wavelet_core.generation.compiled_step import CompiledStepError
from wavelet_core.generation.drafts import ModelDrafts, NgramDrafts
from wavelet_core.generation.exported_programs import ExportError, export_programs
from wavelet_core.generation.generate import Completion, collect, generate
from wavelet_core.generation.request import Request, Token
from wavelet_core.generation.samplers import Sampler
from wavelet_core.generation.sampling import GenerationError
from wavelet_core.generation.session import DecodingSession
from wavelet_core.generation.settings import GenerationSettings, LookaheadSettings
from wavelet_core.generation.spacing import SpacingStream, clean_spacing
from wavelet_core.generation.text_metrics import completion_metrics, text_drift, text_metrics

__all__ = [
    "Batch",
    "CompiledStepError",
    "Completion",
    "DecodingSession",
    "ExportError",
    "GenerationError",
    "GenerationSettings",
    "LookaheadSettings",
    "ModelDrafts",
    "NgramDrafts",
    "Request",
    "Sampler",
    "SpacingStream",
    "Token",
    "clean_spacing",
    "collect",
    "compile_steps",
    "completion_metrics",
    "export_programs",
    "generate",
    "load_steps",
    "text_drift",
    "text_metrics",
]
