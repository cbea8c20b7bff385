"""`wavelet export`: one of our checkpoints in files that other programs read."""

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
    type=click.Choice(["pt2", "onnx", "hub", "seed"]),
    required=True,
    help="pt2: programs that torch runs alone. onnx: programs for ONNX. hub: what `wavelet push` uploads. seed: "
    "config.json and best_model.pt as the original WaveletLM reads them.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Texts that a program reads side by side. Default: 1.")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=2),
    help="Tokens that the prompt's program reads at a time. Default: 64.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of a program's weights; default: as stored.",
)
def command(
    checkpoint: str, out: Path, output_format: str, batch: int | None, prompt_tokens: int | None, dtype: str | None
) -> None:
    """Write CHECKPOINT, a checkpoint directory, to the new directory OUT in another program's format.

    In the formats pt2 and onnx the model is two programs, one that reads one token and one that reads several of a
    prompt. Both take tokens and the state's tensors, and give logits and the tensors of the state after them; a silent
    state is all zeros, and export.json lists its names, shapes and types.

    \b
    Examples:
      wavelet export runs/demo exported --format pt2
      wavelet export runs/demo exported --format onnx --batch 4 --prompt-tokens 128
      wavelet export runs/demo exported --format seed
    """
    programs = {"--batch": batch, "--prompt-tokens": prompt_tokens, "--dtype": dtype}
    if output_format in ("hub", "seed") and (given := [name for name, value in programs.items() if value is not None]):
        raise click.UsageError(f"{given[0]} is for the formats pt2 and onnx")

    from wavelet_core.checkpoint import locate_checkpoint

    directory = locate_checkpoint(checkpoint)
    if output_format == "seed":
        from wavelet_cli.seed.conversion import export_seed

        export_seed(directory, out)
    elif output_format == "hub":
        from wavelet_cli.hub_layout import write_with_card

        write_with_card(directory, out, out.name)
    else:
        import torch

        from wavelet_core.checkpoint import TOKENIZER_DIRECTORY, load_checkpoint
        from wavelet_core.generation import export_programs
        from wavelet_core.tokenizers import checkpoint_tokenizer

        model = load_checkpoint(directory, None if dtype is None else getattr(torch, dtype))
        tokenizer = None
        if (directory / TOKENIZER_DIRECTORY).is_dir():
            tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary, verify=False)
        export_programs(model, out, output_format, batch or 1, prompt_tokens or 64, tokenizer)
    click.echo(f"exported {directory} to {out} in {output_format} format")
