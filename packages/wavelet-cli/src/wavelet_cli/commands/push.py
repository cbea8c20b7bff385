"""`wavelet push`: a checkpoint to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from wavelet_cli.shared_options import checkpoint_argument


@click.command("push", short_help="Upload a checkpoint to the Hugging Face hub.")
@checkpoint_argument
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--license", metavar="NAME", help="The license that the model card names, as the hub does: apache-2.0, mit."
)
@click.option("--revision", metavar="BRANCH", help="The branch to upload to. Default: main.")
def command(checkpoint: str, repository: str, private: bool, license: str | None, revision: str | None) -> None:
    """Upload CHECKPOINT, a checkpoint or run directory, to the Hugging Face hub as OWNER/NAME.

    The model card is made from the run: what its validation measured, its configuration and the command that trains it
    again. The tokenizer is uploaded also as the library tokenizers reads it. `hf auth login` stores the token that
    uploading needs; HF_ENDPOINT names another hub. `wavelet export --format hub` writes the same files to a directory.

    \b
    Examples:
      wavelet push runs/demo ada/stdlib-demo --license apache-2.0
      wavelet push runs/demo/last ada/stdlib-demo --revision last --private
    """
    from wavelet_cli.hub_layout import write_with_card
    from wavelet_core.checkpoint import locate_checkpoint
    from wavelet_core.hub import require_hub, upload

    require_hub()
    directory = locate_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        write_with_card(directory, Path(folder) / "checkpoint", repository, license)
        address = upload(Path(folder) / "checkpoint", repository, private, revision)
    click.echo(f"uploaded {directory}: {address}")
