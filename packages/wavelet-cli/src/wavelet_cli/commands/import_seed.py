"""`wavelet import`: a checkpoint of the original research code becomes one of ours."""

from __future__ import annotations

from pathlib import Path

import click

from wavelet_cli.output import warning_style
from wavelet_cli.shared_options import new_directory_argument


@click.command("import", short_help="Convert a checkpoint of the original research code.")
@click.argument("seed_checkpoint", type=click.Path(path_type=Path))
@new_directory_argument
@click.option(
    "--config",
    "config_json",
    type=click.Path(path_type=Path),
    help="The flat config.json of the original; by default the one beside SEED_CHECKPOINT.",
)
def command(seed_checkpoint: Path, out: Path, config_json: Path | None) -> None:
    """Convert SEED_CHECKPOINT, a .pt file of the original WaveletLM, into the new checkpoint directory OUT.

    Every tensor is accounted for: what does not fit is listed by name and shape, and nothing is written.

    \b
    Examples:
      wavelet import best_model.pt imported
      wavelet import best_model.pt imported --config runs/7/config.json
      wavelet generate imported "The"
    """
    from wavelet_cli.seed.conversion import import_seed

    report = import_seed(seed_checkpoint, config_json, out)
    click.echo(f"{out}: {report.parameters:,} parameters from {report.tensors:,} tensors of {seed_checkpoint}")
    for remark in report.remarks:
        click.echo(warning_style(f"note: {remark}"), err=True)
