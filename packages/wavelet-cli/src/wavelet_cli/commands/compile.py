"""`wavelet compile`: compile what a checkpoint's model does for one token."""

from __future__ import annotations

import time

import click

from wavelet_cli.numbers import Numbers
from wavelet_cli.shared_options import checkpoint_argument, verify_option


@click.command("compile", short_help="Compile a model's steps, for faster decoding.")
@checkpoint_argument
@click.option(
    "--batch",
    "batches",
    type=Numbers(),
    default="1",
    show_default=True,
    metavar="N,N,...",
    help="Numbers of texts decoded together to compile for.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Type of the weights; default: as stored."
)
@verify_option
def command(checkpoint: str, batches: list[int], dtype: str | None, verify: bool) -> None:
    """Compile what the model in CHECKPOINT does for one token, into the folder `compiled` of the checkpoint directory.

    `wavelet generate` uses it from then on, which makes small models several times faster, and loads it in a moment. It
    holds no weights. It fits the model, the type of its weights, this version of torch, this processor and this user:
    where one of them is another, `generate` says so, and it must be compiled again. It is for decoding on a processor,
    needs a C++ compiler, and takes a minute.

    \b
    Examples:
      wavelet compile runs/demo
      wavelet compile runs/demo --batch 1,8
      wavelet compile runs/demo --dtype bfloat16
    """
    import torch

    from wavelet_core.checkpoint import load_checkpoint, locate_checkpoint
    from wavelet_core.generation import DecodingSession, compile_steps

    directory = locate_checkpoint(checkpoint)
    weight_type = None if dtype is None else getattr(torch, dtype)
    model = load_checkpoint(directory, weight_type, verify=verify)
    click.echo(f"compiling {directory} ...", err=True)
    start = time.perf_counter()
    folder = compile_steps(DecodingSession(model), directory, batches)
    click.echo(f"compiled into {folder} in {time.perf_counter() - start:.0f} s")
