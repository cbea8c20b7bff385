"""A checkpoint's model, quantized after loading where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from wavelet_core.checkpoint import MODEL_PARTS, load_checkpoint, verify_checkpoint
from wavelet_quant import quantize


def load_model(
    directory: Path, dtype: torch.dtype | None, device: torch.device | str, verify: bool, recipe: str | None
) -> Any:
    """The model in a checkpoint directory. Weights that a recipe stores otherwise are verified first."""
    if recipe is None:
        return load_checkpoint(directory, dtype, device, verify)
    if not verify:
        raise click.UsageError("what is quantized is always verified first: leave out --no-verify")
    model = load_checkpoint(directory, dtype, device, verify=False)
    verify_checkpoint(directory, MODEL_PARTS)
    return quantize(model, recipe)
