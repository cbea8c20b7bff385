"""`wavelet bench`: how fast models run on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from wavelet_cli import completion
from wavelet_cli.output import print_report
from wavelet_cli.shared_options import (
    device_option,
    json_option,
    kernel_option,
    set_option,
    threads_option,
    verify_option,
)
from wavelet_train.quantities import byte_size
from wavelet_train.tables import table


class Numbers(click.ParamType):
    """Whole numbers from 1 to 999,999,999, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        words = str(value).split(",")
        if not all(re.fullmatch("0*[1-9][0-9]{0,8}", word.strip()) for word in words):
            from wavelet_core.messages import shown

            self.fail(
                f"{shown(str(value))} must be whole numbers from 1 to 999,999,999 separated by commas, as in 100,1000",
                param,
                ctx,
            )
        return [int(word) for word in words]


@click.group("bench", short_help="Measure how fast models run here.")
def command() -> None:
    """Measure how fast models run on this machine."""


@command.command("decode", short_help="Measure what a decoded token costs.")
@click.argument("checkpoint", required=False, shell_complete=completion.checkpoints)
@click.option(
    "--preset",
    metavar="CONFIG",
    shell_complete=completion.configurations,
    help="Measure the model of a preset or configuration file; needs --random.",
)
@click.option(
    "--random", "random_weights", is_flag=True, help="Fresh random weights: speed does not depend on training."
)
@set_option
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of the weights. Default: as stored, float32 for random ones.",
)
@device_option
@click.option("--compile", "compiled", is_flag=True, help="Compile the steps with torch.compile first; takes a minute.")
@threads_option
@kernel_option
@click.option(
    "--positions",
    type=Numbers(),
    default="100,1000,10000",
    show_default=True,
    metavar="N,N,...",
    help="Where in a text to measure latency.",
)
@click.option(
    "--token-by-token",
    is_flag=True,
    help="Read up to the positions token by token, and say how memory grew between them; slow.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=32, show_default=True, help="Tokens measured at each.")
@click.option(
    "--window-rounds",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Tokens measured with the policy `window`, and whole forwards; 0 leaves them out.",
)
@click.option("--batches", type=Numbers(), metavar="N,N,...", help="Also measure so many streams at once, as in 8,32.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw latency against position: FILE.svg or FILE.png.",
)
@verify_option
@json_option
def decode_command(
    checkpoint: str | None,
    preset: str | None,
    random_weights: bool,
    overrides: tuple[str, ...],
    dtype: str | None,
    device: str,
    compiled: bool,
    threads: int | None,
    positions: list[int],
    token_by_token: bool,
    rounds: int,
    window_rounds: int,
    batches: list[int] | None,
    plot: Path | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Measure what a decoded token costs with the model in CHECKPOINT, or with a preset's and random weights.

    Reported: latency at several positions of a text, tokens per second, bytes of weights read per token and the share
    of the read bandwidth measured in the same run, time over that of the matrix products alone, and how much longer
    the policy `window` takes, and a whole forward over the window with all its logits, as the original does it for
    every token. What is compared takes turns, and ratios are medians of pairs.

    \b
    Examples:
      wavelet bench decode runs/demo
      wavelet bench decode --preset wikitext-103 --random --dtype bfloat16 --positions 100
      wavelet bench decode --preset demo --random --batches 8,32 --plot decode.svg --json
    """
    if (checkpoint is None) == (preset is None):
        raise click.UsageError("name either a CHECKPOINT or a --preset")
    if preset is not None and not random_weights:
        raise click.UsageError("--preset names a configuration without weights: add --random, or name a CHECKPOINT")
    if checkpoint is None and not verify:
        raise click.UsageError("--no-verify is for a CHECKPOINT; random weights have nothing to verify")
    if checkpoint is not None and (random_weights or overrides):
        raise click.UsageError(
            "--random and --set are for --preset; a CHECKPOINT has its own weights and configuration"
        )
    if plot is not None:
        _require_plotting(plot)

    import torch

    from wavelet_core.devices import resolve_device
    from wavelet_quant.decode_benchmark import decode_benchmark

    place = resolve_device(device, "--device")
    weight_type = None if dtype is None else getattr(torch, dtype)
    if checkpoint is not None:
        from wavelet_cli.processor_threads import choose_threads
        from wavelet_core.checkpoint import load_checkpoint, locate_checkpoint

        directory = locate_checkpoint(checkpoint)
        model = load_checkpoint(directory, weight_type, place, verify)
        choose_threads(directory, model, threads, positions=1)
    else:
        from wavelet_cli.parameter_table import vocabulary_resolved
        from wavelet_cli.run_configuration import load_configuration
        from wavelet_core.threads import use_threads
        from wavelet_quant.decode_benchmark import random_model

        run = load_configuration(str(preset), overrides, model_only=True)
        model = random_model(vocabulary_resolved(run), weight_type or torch.float32).to(place)
        use_threads(threads or run.train.threads, model)
    report = decode_benchmark(model, positions, rounds, window_rounds, batches or (), compiled, token_by_token)
    report = {"model": checkpoint or f"{preset} (random weights)", **report}
    if plot is not None:
        _plot(report, plot)
    print_report(report, as_json, _describe)


def _describe(report: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = [
        ("model", f"{report['model']}, {report['parameters']:,} parameters, {report['dtype']}"),
        ("steps", "compiled" if report["compiled"] else "as they are"),
        ("kernels", ", ".join(report["kernels"]) or "torch's own products"),
        ("runs on", f"{report['device']}, {report['threads']} thread{'s' if report['threads'] > 1 else ''}"),
        (
            "decoding",
            f"{report['tokens_per_second']:.1f} tokens/s, {1e3 * report['seconds_per_token']:.2f} ms per token",
        ),
        *((f"  at position {at['position']:,}", f"{1e3 * at['seconds']:.2f} ms") for at in report["latency"]),
        ("last to first position", f"{report['last_to_first_latency']:.3f}"),
        ("state", byte_size(report["state_bytes"])),
    ]
    for growth, span in (
        ("resident_growth_between_positions_bytes", "from the first position to the last"),
        ("resident_growth_bytes", f"over {report['decoded_tokens']:,} measured tokens"),
    ):
        if report[growth] is not None:
            rows.append(("resident memory", f"grew by {byte_size(max(0, report[growth]))} {span}"))
    rows += [
        ("weights read per token", byte_size(report["weight_bytes_per_token"])),
        ("read bandwidth", f"{report['read_bandwidth'] / 1e9:.1f} GB/s"),
        ("share of it used", f"{report['share_of_bandwidth']:.0%}"),
        ("time over matrix products", f"{report['time_over_matrix_products']:.2f}"),
    ]
    if "window_tokens" in report:
        name = f"window of {report['window_tokens']} tokens"
        rows += [
            (f"{name}, per token", f"{1e3 * report['window_seconds_per_token']:.1f} ms"),
            (f"{name} / stream", f"{report['window_to_stream']:.1f}"),
            ("whole forward / stream", f"{report['full_forward_to_stream']:.1f}"),
        ]
    rows += [
        (
            f"{batch['streams']} streams",
            f"{batch['tokens_per_second']:.1f} tokens/s, {batch['throughput_over_one']:.1f} times one",
        )
        for batch in report["batches"]
    ]
    return table(rows)


def _require_plotting(path: Path) -> None:
    """Refuse a plot that cannot be drawn, before anything is measured."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise click.UsageError(f"--plot {path}: the name must end in .svg or .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise click.UsageError(
            "--plot needs matplotlib: pip install 'wavelet-cli[matplotlib]', or leave --plot out"
        ) from None


def _plot(report: dict[str, Any], path: Path) -> None:
    """Latency against position, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    positions = [at["position"] for at in report["latency"]]
    axes.plot(positions, [1e3 * at["seconds"] for at in report["latency"]], marker="o", label="stream")
    if "window_tokens" in report:
        label = f"window of {report['window_tokens']} tokens"
        axes.axhline(1e3 * report["window_seconds_per_token"], linestyle="--", color="tab:orange", label=label)
    axes.set(xscale="log", xlabel="position in the text (tokens)", ylabel="time per token (ms)", title=report["model"])
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)
