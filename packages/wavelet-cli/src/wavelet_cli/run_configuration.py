"""Run configurations as every command takes them: ours, or translated from the original's flat file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from wavelet_cli.seed.recipe import run_from_seed
from wavelet_core.configuration_files import locate, read_file
from wavelet_train import PRESETS
from wavelet_train.run_config import RunConfig, is_seed_config, run_config


def load_configuration(source: str | Path, overrides: Sequence[str] = (), model_only: bool = False) -> RunConfig:
    """As `load_run_config`; a flat config.json of the original is translated, with remarks on stderr.

    model_only: only the model is wanted, so that nothing need be known about the original's data.
    """
    data = read_file(locate(source, PRESETS))
    if is_seed_config(data):
        data, remarks = run_from_seed(data, overrides, str(source), model_only)
        overrides = ()
        for remark in remarks:
            click.echo(f"note: {remark}", err=True)
    return run_config(data, overrides, str(source))
