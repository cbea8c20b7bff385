"""`wavelet export`: one of our checkpoints in the files of the original research code."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export", short_help="Write a checkpoint in another program's format.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["seed"]),
    required=True,
    help="seed: config.json and best_model.pt as the original WaveletLM reads them.",
)
def command(checkpoint: Path, out: Path, output_format: str) -> None:
    """Write CHECKPOINT, a checkpoint directory, to the directory OUT in another program's format.

    \b
    Example:
      wavelet export runs/demo exported --format seed
    """
    from wavelet_core.seed import export_seed

    export_seed(checkpoint, out)
    click.echo(f"exported {checkpoint} to {out} in {output_format} format")
