"""`wavelet evaluate`: how well a checkpoint predicts a text, in every unit."""

from __future__ import annotations

from dataclasses import replace
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

UNITS = ("bits_per_byte", "perplexity_per_word", "nats_per_token", "bits_per_token", "perplexity_per_token")
SIZES = ("bytes", "words", "tokens", "documents")


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
@click.option("--tokens", type=click.IntRange(1), help="Score no more than the first so many tokens.")
@click.option(
    "--windows",
    type=click.Choice(["sliding", "non-overlapping", "streaming"]),
    default="sliding",
    show_default=True,
    help="sliding: a window scores the tokens that the one before did not reach; streaming: no windows, every document "
    "is read in a row with the model's state.",
)
@click.option("--window", type=click.IntRange(1), help="Tokens that a window reads. [model.context_length]")
@click.option("--stride", type=click.IntRange(1), help="Tokens between the starts of sliding windows. [half a window]")
@click.option(
    "--separate-documents",
    is_flag=True,
    help="Windows begin anew with every document, which is predicted from an end of text on.",
)
@click.option(
    "--cross-window-state",
    is_flag=True,
    help="Carry what model.cross_window_state carries through the non-overlapping windows of a document.",
)
@click.option(
    "--fast-weight-updates", is_flag=True, help="Let fast-weight memories learn from each document as it streams."
)
@click.option(
    "--words",
    type=click.IntRange(1),
    help="Words of the text for the perplexity per word, where the field has agreed on a number. [counted]",
)
@click.option(
    "--resamples",
    type=click.IntRange(0, 1_000_000),
    default=1000,
    show_default=True,
    help="Draws of documents for the 95% confidence intervals; 0: none.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of these draws.")
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the loss against the tokens read before, as PNG or SVG.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1 << 30),
    default=8,
    show_default=True,
    help="Windows, or documents, at a time.",
)
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
    tokens: int | None,
    windows: str,
    window: int | None,
    stride: int | None,
    separate_documents: bool,
    cross_window_state: bool,
    fast_weight_updates: bool,
    words: int | None,
    resamples: int,
    seed: int,
    picture: Path | None,
    batch_size: int,
    device: str,
    threads: int | None,
    precision: str,
    recipe: str | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Measure how well CHECKPOINT predicts a text: nats, bits and perplexity per token, bits per byte, and perplexity
    per word, each with a 95% confidence interval where the text has several documents.

    Bits per byte and perplexity per word compare models whatever their tokenizers are; numbers per token only models
    with the same tokenizer.

    Nothing is carried from window to window, and no fast weights are updated, unless that is asked for.

    \b
    Examples:
      wavelet evaluate runs/demo
      wavelet evaluate runs/demo --split validation --windows non-overlapping
      wavelet evaluate runs/demo --data book.txt --json
      wavelet evaluate runs/demo --data book.txt --windows streaming --tokens 100000 --plot loss.svg
    """
    if path is not None and split is not None:
        raise click.UsageError("--split is for the run's own data; a text given with --data is evaluated whole")
    if stride is not None and windows != "sliding":
        raise click.UsageError(f"--stride is for sliding windows, not for --windows {windows}")
    if words is not None and tokens is not None:
        raise click.UsageError("--words are those of the whole text: leave out --tokens")

    from wavelet_cli.checkpoint_text import checkpoint_text
    from wavelet_cli.processor_threads import choose_threads
    from wavelet_cli.quantized_model import load_model
    from wavelet_core.checkpoint import locate_checkpoint
    from wavelet_core.devices import resolve_device
    from wavelet_core.tokenizers import checkpoint_tokenizer
    from wavelet_train.bootstrap import LEVEL, confidence_intervals, document_word_counts
    from wavelet_train.evaluation import score_text
    from wavelet_train.figures import check_picture, save_figure
    from wavelet_train.precision import resolve_precision
    from wavelet_train.progress import Progress
    from wavelet_train.reading import Reading

    if picture is not None:
        check_picture(picture)
    directory = locate_checkpoint(checkpoint)
    place = resolve_device(device, "--device")
    model = load_model(directory, None, place, verify, recipe)
    width = window or model.config.context_length
    reading = Reading(
        window,
        (stride or max(1, width // 2)) if windows == "sliding" and not cross_window_state else None,
        windows == "streaming",
        separate_documents,
        cross_window_state,
        fast_weight_updates,
    )
    choice = choose_threads(directory, model, threads, positions=batch_size * width)
    tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary_size or 0, verify=False)
    text = checkpoint_text(directory, tokenizer, path, split or "test")
    if words is not None:
        text = replace(text, word_count=words)
    with Progress("evaluating", min(len(text.tokens) - 1, tokens or len(text.tokens)), " tokens") as progress:

        def on_batch(scored: int) -> None:
            progress.advance(scored)
            choice.renew()

        scores = score_text(
            model,
            text,
            tokenizer,
            reading,
            batch_size,
            tokens,
            resolve_precision(precision, place),  # type: ignore[arg-type]
            on_batch,
        )
    if picture is not None:
        save_figure(scores.by_position.draw(), picture)
    intervals = {}
    if resamples:
        word_counts = document_word_counts(text, tokenizer) if scores.total.word_count else None
        intervals = confidence_intervals(scores, word_counts, resamples, seed)
    report = {
        "checkpoint": str(directory),
        "text": str(path or text.name),
        "windows": windows,
        **scores.total.as_dict(),
        "documents": scores.documents,
        "intervals": {"level": LEVEL, "resamples": resamples, "seed": seed, **intervals} if intervals else None,
        "by_position": scores.by_position.as_list(),
    }
    print_report(report, as_json, _describe)


def _describe(report: dict[str, Any]) -> str:
    intervals = report["intervals"] or {}
    rows = []
    for name in (*UNITS, "accuracy"):
        if report[name] is not None:
            ends = " to ".join(f"{end:.4f}" for end in intervals.get(name, ()))
            rows.append((name.replace("_", " "), f"{report[name]:.4f}", ends))
    rows += [(name, f"{report[name]:,}", "") for name in SIZES if report[name] is not None]
    windows = f"windows of {report['window']} tokens every {report['stride']}"
    lines = [
        f"{report['checkpoint']} on {report['text']}",
        table(rows),
        "every document in a row, with the model's state" if report["window"] is None else windows,
    ]
    if intervals:
        draws = f"{intervals['resamples']:,} draws of documents, seed {intervals['seed']}"
        lines.append(f"intervals hold with a probability of {intervals['level']:.0%}: {draws}")
    return titled("\n".join(lines))
