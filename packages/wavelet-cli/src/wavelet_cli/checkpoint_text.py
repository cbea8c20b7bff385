"""The text that a checkpoint is evaluated on, or calibrated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wavelet_core.checkpoint import CONFIG_FILE, read_config
from wavelet_core.config import parse
from wavelet_core.tensor_files import CheckpointError
from wavelet_core.tokenizers import Tokenizer
from wavelet_train.data import DataConfig, PreparedData
from wavelet_train.token_split import TokenSplit


def checkpoint_text(
    directory: Path, tokenizer: Tokenizer, path: Path | None, split: Any, option: str = "--data"
) -> TokenSplit:
    """The tokens of a file or folder, or else of a split of the data that a checkpoint was trained on.

    Raises CheckpointError, naming the option for a path, where the checkpoint does not say what that was.
    """
    if path is not None:
        return PreparedData(DataConfig(dataset={"kind": "text", "test": str(path)}), tokenizer).split("test")
    saved = read_config(directory).get("data")
    if saved is None:
        raise CheckpointError(f"{directory} does not say what it was trained on; name a text with {option}")
    return PreparedData(parse(DataConfig, saved, f"{directory / CONFIG_FILE}: data"), tokenizer).split(split)
