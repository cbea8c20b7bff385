"""A checkpoint as the Hugging Face hub shows it, with a card about its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavelet_core.checkpoint import TOKENIZER_DIRECTORY, read_config, read_model_config, write_hub_layout
from wavelet_core.model_card import model_card
from wavelet_core.tokenizers import checkpoint_tokenizer
from wavelet_train.run_directory import METRICS_FILE
from wavelet_train.run_history import RunHistory


def write_with_card(checkpoint: Path, directory: Path, name: str, license: str | None = None) -> None:
    """Write a checkpoint to a new directory with all that belongs on the hub. name: of the repository."""
    tokenizer = None
    if (checkpoint / TOKENIZER_DIRECTORY).is_dir():
        tokenizer = checkpoint_tokenizer(checkpoint, read_model_config(checkpoint).vocabulary)
    results = _results(checkpoint)
    write_hub_layout(
        checkpoint,
        directory,
        tokenizer,
        lambda config, parameters: model_card(name, config, parameters, license, results),
    )


def _results(checkpoint: Path) -> dict[str, Mapping[str, Any]]:
    """What the checkpoint's run has measured of it, by split: its last report on the best, or else its validation."""
    history = RunHistory.read(checkpoint.parent / METRICS_FILE)
    if checkpoint.name == "best" and history.report:
        return {split: values for split, values in history.report[-1].items() if isinstance(values, Mapping)}
    step = read_config(checkpoint).get("step")
    measured = [record for record in history.validation if record["step"] == step]
    return {"validation": measured[-1]} if measured else {}
