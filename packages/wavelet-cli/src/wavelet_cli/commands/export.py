"""`wavelet export`: one of our checkpoints in the files of the original research code."""

from __future__ import annotations

from pathlib import Path

import click

from wavelet_cli.shared_options import checkpoint_argument, new_directory_argument


@click.command("export", short_help="Write a checkpoint in another program's format.")
@checkpoint_argument
@new_directory_argument
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["seed"]),
    required=True,
    help="seed: config.json and best_model.pt as the original WaveletLM reads them.",
)
def command(checkpoint: str, out: Path, output_format: str) -> None:
    """Write CHECKPOINT, a checkpoint directory, to the new directory OUT in another program's format.

    \b
    Examples:
      wavelet export runs/demo exported --format seed
    """
    from wavelet_cli.seed.conversion import export_seed
    from wavelet_core.checkpoint import locate_checkpoint

    directory = locate_checkpoint(checkpoint)
    export_seed(directory, out)
    click.echo(f"exported {directory} to {out} in {output_format} format")
