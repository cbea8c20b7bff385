"""What is stored in which format, part by part, as `wavelet quantize` and `wavelet inspect` print it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from wavelet_core.config import LanguageModelConfig
from wavelet_core.language_model import build_model
from wavelet_core.parameter_counts import module_parts
from wavelet_quant import QuantizedMatrix, RecipeQuantizer


def part_names(model: nn.Module) -> dict[str, str]:
    """The part of a model that each of its modules belongs to, by the module's name."""
    parts: dict[nn.Module, str] = {}
    for module, part, _ in module_parts(model):
        parts.setdefault(module, part)
    return {name: parts[module] for name, module in model.named_modules()}


def quantization_report(matrices: Iterable[QuantizedMatrix], parts: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each part of a model and what its matrices are stored in."""
    groups: dict[tuple[str, str, bool], list[QuantizedMatrix]] = {}
    for matrix in matrices:
        groups.setdefault((parts[matrix.name], ", ".join(matrix.formats), matrix.calibrated), []).append(matrix)
    return [
        {
            "part": part,
            "formats": formats,
            "weights": (weights := sum(matrix.weights for matrix in own)),
            "bits": 8 * (after := sum(matrix.bytes_after for matrix in own)) / weights,
            "bytes_before": sum(matrix.bytes_before for matrix in own),
            "bytes_after": after,
            "relative_error": _relative_error(own),
            "error_of": "output" if calibrated else "weights",
        }
        for (part, formats, calibrated), own in groups.items()
    ]


def _relative_error(matrices: list[QuantizedMatrix]) -> float:
    norm = sum(matrix.squared_norm for matrix in matrices)
    return math.sqrt(sum(matrix.squared_error for matrix in matrices) / norm) if norm else 0.0


def stored_report(config: LanguageModelConfig, quantization: RecipeQuantizer.Config) -> list[dict[str, Any]]:
    """The rows for a quantized model, but for what it was before; the model is made without memory for its weights."""
    matrices: list[QuantizedMatrix] = []
    with torch.device("meta"):
        model: Any = build_model(config)
        parts = part_names(model)
        RecipeQuantizer(quantization).apply(model, progress=lambda matrix, total: matrices.append(matrix))
    shown = ("part", "formats", "weights", "bits", "bytes_after")
    return [{name: row[name] for name in shown} for row in quantization_report(matrices, parts)]
