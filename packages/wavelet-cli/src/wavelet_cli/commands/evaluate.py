"""`wavelet evaluate`: how well a checkpoint predicts a text, in every unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wavelet_cli.output import print_report, titled
from wavelet_cli.shared_options import (
    checkpoint_argument,
    device_option,
    json_option,
    kernel_option,
    quantize_option,
    threads_option,
    verify_option,
)
from wavelet_train.tables import table


@click.command("evaluate", short_help="Measure how well a checkpoint predicts a text.")
@checkpoint_argument
@click.option(
    "--data",
    "path",
    type=click.Path(path_type=Path, exists=True),
    help="A text file, or a folder of text files, to evaluate on as a whole; by default what the run was trained on.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    help="Which split of the run's data; test by default.",
)
@click.option(
    "--windows",
    type=click.Choice(["sliding", "non-overlapping"]),
    default="sliding",
    show_default=True,
    help="sliding: windows start half a window apart and score the tokens that are new in them.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Windows at a time.")
@device_option
@threads_option
@kernel_option
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="Type of matrix products; auto is bfloat16 where the device has it.",
)
@quantize_option
@verify_option
@json_option
def command(
    checkpoint: str,
    path: Path | None,
    split: str | None,
    windows: str,
    batch_size: int,
    device: str,
    threads: int | None,
    precision: str,
    recipe: str | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Measure how well CHECKPOINT predicts a text: nats, bits and perplexity per token, bits per byte, and perplexity
    per word.

    Bits per byte and perplexity per word compare models whatever their tokenizers are; numbers per token only models
    with the same tokenizer.

    \b
    Examples:
      wavelet evaluate runs/demo
      wavelet evaluate runs/demo --split validation --windows non-overlapping
      wavelet evaluate runs/demo --data book.txt --json
    """
    if path is not None and split is not None:
        raise click.UsageError("--split is for the run's own data; a text given with --data is evaluated whole")

    from wavelet_cli.checkpoint_text import checkpoint_text
    from wavelet_cli.processor_threads import choose_threads
    from wavelet_cli.quantized_model import load_model
    from wavelet_core.checkpoint import locate_checkpoint
    from wavelet_core.devices import resolve_device
    from wavelet_core.tokenizers import checkpoint_tokenizer
    from wavelet_train.evaluation import evaluate
    from wavelet_train.precision import resolve_precision
    from wavelet_train.progress import Progress

    directory = locate_checkpoint(checkpoint)
    place = resolve_device(device, "--device")
    model = load_model(directory, None, place, verify, recipe)
    choice = choose_threads(directory, model, threads, positions=batch_size * model.config.context_length)
    tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary_size or 0, verify=False)
    text = checkpoint_text(directory, tokenizer, path, split or "test")
    stride = max(1, model.config.context_length // 2) if windows == "sliding" else None
    with Progress("evaluating", len(text.tokens) - 1, " tokens") as progress:

        def on_batch(scored: int) -> None:
            progress.advance(scored)
            choice.renew()

        result = evaluate(
            model,
            text,
            tokenizer,
            stride,
            batch_size,
            dtype=resolve_precision(precision, place),  # type: ignore[arg-type]
            on_batch=on_batch,
        )
    report = {"checkpoint": str(directory), "text": str(path or text.name), **result.as_dict()}
    print_report(report, as_json, _describe)


def _describe(report: dict[str, Any]) -> str:
    units = ("bits_per_byte", "perplexity_per_word", "nats_per_token", "bits_per_token", "perplexity_per_token")
    sizes = ("bytes", "words", "tokens")
    rows = [(name.replace("_", " "), f"{report[name]:.4f}") for name in units if report[name] is not None]
    rows += [(name, f"{report[name]:,}") for name in sizes if report[name] is not None]
    rows.append(("windows", f"{report['window']} tokens every {report['stride']}"))
    return titled(f"{report['checkpoint']} on {report['text']}\n{table(rows)}")
