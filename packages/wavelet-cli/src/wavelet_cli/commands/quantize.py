"""`wavelet quantize`: a checkpoint with its weights in fewer bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from wavelet_cli import completion
from wavelet_cli.output import print_report, titled
from wavelet_cli.shared_options import checkpoint_argument, is_taken, json_option, threads_option
from wavelet_train.tables import table

BATCH = 8  # calibration windows at a time
SEED = 0  # of where the calibration windows lie


@click.command("quantize", short_help="Store a checkpoint's weights in fewer bits.")
@checkpoint_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    metavar="NAME|FILE",
    shell_complete=completion.recipes,
    help="Which matrices get which format: int8, int4, mixed-8-4-2, mixed-conservative, or a YAML or JSON file.",
)
@click.option(
    "--calibrate",
    "text",
    metavar="TEXT",
    type=click.Path(path_type=Path, exists=True),
    help="Round by what the model reads in this file or folder. Default, for 4 bits and less: its training data.",
)
@click.option("--no-calibrate", is_flag=True, help="Round every weight by itself.")
@click.option(
    "--windows",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    help="Windows of model.context_length tokens, drawn from that text.",
)
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint that is at OUT.")
@threads_option
@json_option
def command(
    checkpoint: str,
    out: Path,
    recipe: str,
    text: Path | None,
    no_calibrate: bool,
    windows: int,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the model in CHECKPOINT to the directory OUT with its weights in fewer bits.

    OUT is a checkpoint as any other: it generates, is evaluated and is loaded from Python. It keeps the tokenizer and
    what the model was trained on. The table says what became of each part of the model; its error is that of what the
    part's matrices give for the text that they were rounded by, or of the weights themselves.

    \b
    Examples:
      wavelet quantize runs/demo runs/demo-int8
      wavelet quantize runs/demo runs/demo-int4 --recipe int4
      wavelet quantize runs/demo runs/demo-mixed --recipe my-recipe.yaml --calibrate book.txt
    """
    if text is not None and no_calibrate:
        raise click.UsageError("--calibrate and --no-calibrate contradict each other: give one of the two")

    from wavelet_cli.processor_threads import choose_threads
    from wavelet_cli.quantization_table import part_names, quantization_report
    from wavelet_core.atomic_files import check_writable
    from wavelet_core.checkpoint import (
        MODEL_PARTS,
        TOKENIZER_DIRECTORY,
        load_checkpoint,
        locate_checkpoint,
        read_config,
        save_checkpoint,
        verify_checkpoint,
    )
    from wavelet_quant import QuantizedMatrix, load_recipe, quantize, weight_bytes
    from wavelet_train.progress import Progress

    directory = locate_checkpoint(checkpoint)
    _check_out(directory, out, overwrite)
    chosen = load_recipe(recipe)
    check_writable(out)
    config = read_config(directory)
    model = load_checkpoint(directory, verify=False)
    verify_checkpoint(directory, MODEL_PARTS)
    parts, before = part_names(model), weight_bytes(model)
    matrices: list[QuantizedMatrix] = []
    calibrates = not no_calibrate and (text is not None or chosen.rounds_by_inputs)
    choose_threads(directory, model, threads, positions=BATCH * model.config.context_length)
    with Progress("quantizing", before) as progress:

        def quantized(matrix: QuantizedMatrix, total: int) -> None:
            matrices.append(matrix)
            progress.advance(matrix.bytes_before, f"matrix {len(matrices)} of {total}")

        hessians, calibration = (
            _calibration(directory, model, text, windows, lambda note: progress.advance(0, note))
            if calibrates
            else ((), None)
        )
        quantize(model, chosen, hessians, quantized, calibration)

    def write_tokenizer(fresh: Path) -> None:
        if (directory / TOKENIZER_DIRECTORY).is_dir():
            shutil.copytree(directory / TOKENIZER_DIRECTORY, fresh / TOKENIZER_DIRECTORY)

    kept = {name: config[name] for name in config if name not in ("format_version", "model", "components")}
    save_checkpoint(model, out, extra=kept, write_more=write_tokenizer)
    report = {
        "checkpoint": str(directory),
        "out": str(out),
        "recipe": chosen.name,
        "calibration": calibration,
        "parts": quantization_report(matrices, parts),
        "bytes_before": before,
        "bytes_after": weight_bytes(model),
    }
    print_report(report, as_json, _describe)


def _check_out(directory: Path, out: Path, overwrite: bool) -> None:
    """Refuse a place where something is that nobody gave up."""
    if out.exists() and out.resolve() == directory.resolve():
        raise click.BadParameter(f"{out} is the checkpoint itself; name another directory", param_hint="OUT")
    if is_taken(out) and not overwrite:
        raise click.BadParameter(
            f"{out} exists already; name a new directory, or replace it with --overwrite", param_hint="OUT"
        )


def _calibration(
    directory: Path, model: Any, path: Path | None, count: int, note: Callable[[str], None]
) -> tuple[Iterable[Any], dict[str, int | str]]:
    """What the weights are rounded by, and what the checkpoint says about it."""
    from wavelet_cli.checkpoint_text import checkpoint_text
    from wavelet_core.tokenizers import checkpoint_tokenizer
    from wavelet_quant.calibration import collect_hessians, draw_windows

    tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary, verify=False)
    split = checkpoint_text(directory, tokenizer, path, "train", "--calibrate, or leave it out with --no-calibrate")
    length = model.config.context_length
    windows = draw_windows(split.tokens, length, count, SEED)
    hessians = collect_hessians(
        model,
        windows.split(BATCH),
        progress=lambda done, total: note(f"calibrating, batch {done} of {total}"),
    )
    name = "the training data" if path is None else path.name
    return hessians, {"text": name, "windows": count, "window_tokens": length, "seed": SEED}


def _describe(report: dict[str, Any]) -> str:
    def megabytes(size: float) -> str:
        return f"{size / 1e6:,.2f}"

    parts = report["parts"]
    rows: list[tuple[str, ...]] = [
        (
            row["part"],
            row["formats"],
            f"{row['bits']:.2f}",
            megabytes(row["bytes_before"]),
            megabytes(row["bytes_after"]),
            f"{row['relative_error']:.3%} of {row['error_of']}",
        )
        for row in parts
    ]
    left = [report[name] - sum(row[name] for row in parts) for name in ("bytes_before", "bytes_after")]
    rows.append(("the rest", "as it was", "", *map(megabytes, left), ""))
    rows.append(("total", "", "", megabytes(report["bytes_before"]), megabytes(report["bytes_after"]), ""))
    header = ("part", "format", "bits", "MB before", "MB after", "relative error")
    calibration = report["calibration"]
    by = (
        "every weight by itself"
        if calibration is None
        else f"by {calibration['windows']} windows of {calibration['window_tokens']} tokens of {calibration['text']}"
    )
    title = f"{report['out']}: {report['checkpoint']} as {report['recipe']} says, rounded {by}"
    return titled(f"{title}\n\n{table(rows, header)}")
