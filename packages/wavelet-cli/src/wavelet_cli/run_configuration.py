"""Run configurations as every command takes them: ours, or translated from the original's flat file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wavelet_cli.seed.configuration import model_config_from_seed
from wavelet_train.run_config import RunConfig, is_seed_config, locate, read_file, run_config


def load_configuration(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """As `load_run_config`; of a flat config.json of the original the model is translated."""
    data = read_file(locate(source))
    if is_seed_config(data):
        data = {"model": model_config_from_seed(data, source=str(source)).model_dump(mode="json")}
    return run_config(data, overrides, str(source))
