"""`wavelet inspect`: what a checkpoint holds."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wavelet_cli import completion
from wavelet_cli.output import print_report, titled
from wavelet_cli.shared_options import checkpoint_argument, json_option
from wavelet_train.quantities import byte_size
from wavelet_train.tables import table

if TYPE_CHECKING:
    from wavelet_core.config import LanguageModelConfig


@click.command("inspect", short_help="Show what a checkpoint holds, and draw a page of it and of its run.")
@click.option("--verify", is_flag=True, help="Read all of it, and fail unless it is what was saved.")
@click.option("--accept", is_flag=True, help="Take what it holds now for what was saved, if it can be loaded.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the page goes. Default: inspect.html in a run's directory, or NAME.html beside a checkpoint.",
)
@click.option("--no-html", is_flag=True, help="Write no page. Nor do --json, --verify and --accept without --html.")
@click.option(
    "--png", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Save every figure in DIR as well."
)
@click.option("--text", help="What the model reads for the figures. Default: the start of the validation split.")
@click.option(
    "--compare",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    shell_complete=completion.checkpoints,
    help="Lay this run over the first on the page, and list what differs. May be given many times.",
)
@checkpoint_argument
@json_option
def command(
    checkpoint: str,
    verify: bool,
    accept: bool,
    html: Path | None,
    no_html: bool,
    png: Path | None,
    text: str | None,
    others: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Show what CHECKPOINT holds: model, parameters, stored types and formats, tokenizer, files, and the packages it
    needs. And write a page with figures: a run's loss, learning rate, speed and gradient norms, and what its model is
    like: energy per scale along a text, crawl weights, gains, routing, gates, memory slots that are used.

    A run may still be going on. The page is one file that needs nothing else, for any browser.

    Without a page, nothing but headers is read from the weights; --verify compares every file and tensor with the
    digest that was saved with it and looks for weights that are not finite. --accept is for a checkpoint that was
    changed on purpose.

    \b
    Examples:
      wavelet inspect runs/demo
      wavelet inspect runs/demo --json
      wavelet inspect runs/demo/last --verify
      wavelet inspect runs/demo --compare runs/other --html compared.html --png figures
    """
    from wavelet_core.checkpoint import accept_checkpoint, locate_checkpoint
    from wavelet_core.config import ConfigurationError
    from wavelet_train.figures import require_matplotlib
    from wavelet_train.run_page import is_run

    if html is not None and no_html:
        raise click.UsageError("--html and --no-html contradict each other")
    wants_page = html is not None or not (no_html or as_json or verify or accept)
    draws = wants_page or png is not None
    if not draws and (text is not None or others):
        raise click.UsageError("--text and --compare are for figures: add --html or --png")
    run = Path(checkpoint) if is_run(Path(checkpoint)) else None
    if run is None and others:
        raise click.UsageError(f"--compare: {checkpoint} is not the directory of a run")
    if draws:
        try:
            require_matplotlib()
        except ConfigurationError as error:
            if html is not None or png is not None or text is not None or others:
                raise
            click.echo(f"No page is written: {error}", err=True)
            draws = False
    # A run that has not validated yet has no checkpoint; its figures can be drawn all the same.
    directory = None if draws and run is not None and not _has_checkpoint(run) else locate_checkpoint(checkpoint)
    if directory is not None:
        if accept:
            accept_checkpoint(directory)
        verification = {"verified": _verify(directory)} if verify else {}
        print_report({**_report(directory), **verification}, as_json, _describe)
    if draws:
        page = (html or _page_of(checkpoint, run)) if wants_page else None
        _draw(run, directory, page, png, text, others)


def _page_of(checkpoint: str, run: Path | None) -> Path:
    """Where a page goes that has no name: not into a checkpoint, which is complete, nor into the cache of the hub."""
    if run is not None:
        return run / "inspect.html"
    path = Path(checkpoint)
    return path.resolve().with_name(f"{path.resolve().name}.html") if path.exists() else Path(f"{path.name}.html")


def _has_checkpoint(run: Path) -> bool:
    from wavelet_train.run_directory import RunDirectory

    directory = RunDirectory(run)
    return directory.best.is_dir() or directory.last.is_dir()


def _draw(
    run: Path | None,
    directory: Path | None,
    html: Path | None,
    png: Path | None,
    text: str | None,
    others: tuple[Path, ...],
) -> None:
    from wavelet_train.run_page import run_page

    if directory is None:
        click.echo(f"{run} has no checkpoint yet: only its history is drawn", err=True)
    page = run_page(run, directory, text, others)
    if html is not None:
        page.write(html)
        click.echo(f"The page is {html}", err=True)
    if png is not None:
        click.echo(f"{len(page.save_figures(png))} figures are in {png}", err=True)


def _verify(directory: Path) -> dict[str, Any] | None:
    """What was read and how long it took; None where there are no digests."""
    from wavelet_core.checkpoint import verify_checkpoint

    start = time.perf_counter()
    verified = verify_checkpoint(directory)
    return None if verified is None else {**asdict(verified), "seconds": time.perf_counter() - start}


def _report(directory: Path) -> dict[str, Any]:
    from wavelet_cli.parameter_table import parameter_report
    from wavelet_core.checkpoint import TOKENIZER_DIRECTORY, WEIGHTS_FILE, read_config, read_model_config
    from wavelet_core.tensor_files import open_tensors
    from wavelet_core.tokenizers import read_description

    model = read_model_config(directory)
    with open_tensors(directory / WEIGHTS_FILE) as file:
        types = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
    tokenizer = directory / TOKENIZER_DIRECTORY
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        "checkpoint": str(directory),
        "model": model.model_dump(mode="json"),
        "components": read_config(directory).get("components", {}),
        "parameters": parameter_report(model),
        "tensor_types": dict(types),
        "quantization": _quantization(directory, model),
        "tokenizer": read_description(tokenizer)["kind"] if tokenizer.exists() else None,
        "files": {str(path.relative_to(directory)): path.stat().st_size for path in files},
    }


def _quantization(directory: Path, model: LanguageModelConfig) -> dict[str, Any] | None:
    """What made a quantized checkpoint, and what its parts are stored in."""
    from wavelet_core.checkpoint import CONFIG_FILE, read_config

    section = read_config(directory).get("quantization")
    if section is None or section.get("kind") != "recipe":
        return section
    from wavelet_cli.quantization_table import stored_report
    from wavelet_core.config import parse
    from wavelet_quant import RecipeQuantizer

    quantization = parse(RecipeQuantizer.Config, section, f"{directory / CONFIG_FILE}: quantization")
    return {**quantization.model_dump(mode="json"), "parts": stored_report(model, quantization)}


def _describe_quantization(quantization: dict[str, Any]) -> str:
    if "parts" not in quantization:
        return f"by the quantizer {quantization.get('kind')}"
    made_by = ", ".join(f"{package} {version}" for package, version in quantization["made_by"].items())
    calibration = quantization["calibration"]
    how = f"calibrated with {calibration.get('text')}" if calibration else "not calibrated"
    return f"by the recipe {quantization['recipe']['name']}, {how}; made by {made_by}"


def _formats_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        (row["part"], row["formats"], row["weights"], f"{row['bits']:.2f}", byte_size(row["bytes_after"]))
        for row in rows
    ]
    return titled(table(lines, ("quantized part", "format", "weights", "bits of each", "size")))


def _describe(report: dict[str, Any]) -> str:
    from wavelet_cli.parameter_table import parameter_table

    model, quantization = report["model"], report["quantization"]
    sizes = [f"{name.replace('_', ' ')} {value}" for name, value in model.items() if type(value) is int]
    types = ", ".join(f"{name} ({count} tensors)" for name, count in report["tensor_types"].items())
    return "\n\n".join(
        [
            table(
                [
                    ("checkpoint", report["checkpoint"]),
                    ("model", ", ".join([model["kind"], *sizes])),
                    ("types", types),
                    *([("quantized", _describe_quantization(quantization))] if quantization else []),
                    ("tokenizer", report["tokenizer"] or "none"),
                    *([("verified", _describe_verified(report["verified"]))] if "verified" in report else []),
                ]
            ),
            parameter_table(report["parameters"]),
            *([_formats_table(quantization["parts"])] if quantization and "parts" in quantization else []),
            titled(table(list(report["components"].items()), ("component", "comes from"))),
            titled(table([(name, byte_size(size)) for name, size in report["files"].items()], ("file", "size"))),
        ]
    )


def _describe_verified(verified: dict[str, Any] | None) -> str:
    if verified is None:
        return "its weights are finite; it was saved without digests, so that nothing tells whether they were changed"
    files, tensors, size = (verified[name] for name in ("files", "tensors", "bytes"))
    return f"{files} files with {tensors} tensors, {byte_size(size)}, are what was saved ({verified['seconds']:.2f} s)"
