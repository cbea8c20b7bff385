"""`wavelet evaluate`: how well a checkpoint predicts a text, in every unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wavelet_cli.output import print_report
from wavelet_cli.shared_options import (
    checkpoint_argument,
    device_option,
    json_option,
    kernel_option,
    quantize_option,
    threads_option,
    verify_option,
)

# Parameters that a probe has no use for.
FOR_TEXTS = (
    *("path", "split", "tokens", "windows", "window", "stride", "separate_documents", "cross_window_state"),
    *("fast_weight_updates", "words", "resamples", "seed"),
)


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
@click.option(
    "--probe",
    metavar="KIND",
    help="Measure recall instead: associative_recall, induction, selective_copying or key_at_distance.",
)
@click.option(
    "--set",
    "arguments",
    multiple=True,
    metavar="FIELD=VALUES",
    help="A field of the probe and one or several values, as in pairs=4,16,64. May be given many times.",
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
@click.pass_context
def command(
    ctx: click.Context,
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
    probe: str | None,
    arguments: tuple[str, ...],
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

    With --probe: how much it recalls of what stands in an example itself, for every combination of the values that
    fields are set to, and by distance.

    \b
    Examples:
      wavelet evaluate runs/demo
      wavelet evaluate runs/demo --split validation --windows non-overlapping
      wavelet evaluate runs/demo --data book.txt --json
      wavelet evaluate runs/demo --data book.txt --windows streaming --tokens 100000 --plot loss.svg
      wavelet evaluate runs/recall --probe associative_recall --set pairs=4,16,64 --plot recall.svg
    """
    if probe is not None:
        given = [name for name in FOR_TEXTS if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        for option in (each for each in ctx.command.params if each.name in given):
            raise click.UsageError(f"{option.opts[0]} is for texts: leave it out, or leave out --probe")
    elif arguments:
        raise click.UsageError("--set is for the fields of a --probe")
    if path is not None and split is not None:
        raise click.UsageError("--split is for the run's own data; a text given with --data is evaluated whole")
    if stride is not None and windows != "sliding":
        raise click.UsageError(f"--stride is for sliding windows, not for --windows {windows}")
    if words is not None and tokens is not None:
        raise click.UsageError("--words are those of the whole text: leave out --tokens")

    from wavelet_cli import probe_report, text_report
    from wavelet_cli.checkpoint_text import checkpoint_text
    from wavelet_cli.processor_threads import choose_workers, use_all_threads
    from wavelet_cli.quantized_model import load_model
    from wavelet_core.checkpoint import locate_checkpoint
    from wavelet_core.devices import resolve_device
    from wavelet_core.tokenizers import checkpoint_tokenizer
    from wavelet_train.evaluation import score_text
    from wavelet_train.figures import check_picture, save_figure
    from wavelet_train.precision import resolve_precision
    from wavelet_train.probes.scores import score_probe
    from wavelet_train.progress import Progress
    from wavelet_train.reading import Reading

    if picture is not None:
        check_picture(picture)
    directory = locate_checkpoint(checkpoint)
    place = resolve_device(device, "--device")
    model = load_model(directory, None, place, verify, recipe)
    dtype = resolve_precision(precision, place)  # type: ignore[arg-type]
    report: dict[str, Any] = {"checkpoint": str(directory)}

    if probe is not None:
        settings = probe_report.probe_settings(arguments)
        probes = [probe_report.make_probe(probe, each, directory, model.config.vocabulary) for each in settings]
        workers = choose_workers(directory, model, threads, batch_size * probes[0].config.length)
        results = []
        with Progress("evaluating", sum(each.config.held_out for each in probes), " examples") as progress:
            for fields, each in zip(settings, probes, strict=True):
                scores = score_probe(model, each, batch_size, dtype, progress.advance, workers)
                results.append({"settings": fields, **scores.as_dict()})
        report |= {"probe": probe, "results": results}
        if picture is not None:
            save_figure(probe_report.draw(report), picture)
        print_report(report, as_json, probe_report.describe)
        return

    width = window or model.config.context_length
    sliding = windows == "sliding" and not cross_window_state
    reading = Reading(
        window,
        (stride or max(1, width // 2)) if sliding else None,
        windows == "streaming",
        separate_documents,
        cross_window_state,
        fast_weight_updates,
    )
    if reading.with_state:
        use_all_threads(directory, model, threads)
        workers = None
    else:
        workers = choose_workers(directory, model, threads, batch_size * width)
    tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary_size or 0, verify=False)
    text = checkpoint_text(directory, tokenizer, path, split or "test")
    if words is not None:
        text = replace(text, word_count=words)
    with Progress("evaluating", min(len(text.tokens) - 1, tokens or len(text.tokens)), " tokens") as progress:
        scored = score_text(
            model, text, tokenizer, reading, batch_size, tokens, dtype, progress.advance, workers=workers
        )
    report |= {"text": str(path or text.name), "windows": windows}
    report |= text_report.text_report(scored, text, tokenizer, resamples, seed)
    if picture is not None:
        save_figure(scored.by_position.draw(), picture)
    print_report(report, as_json, text_report.describe)
