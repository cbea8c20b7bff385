"""`wavelet bench`: how fast models run on this machine."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wavelet_cli import completion
from wavelet_cli.bench_train import train_command
from wavelet_cli.numbers import Numbers
from wavelet_cli.output import print_report, save_measurement, titled
from wavelet_cli.shared_options import (
    device_option,
    json_option,
    kernel_option,
    measurement_option,
    set_option,
    threads_option,
    verify_option,
)
from wavelet_train.quantities import byte_size
from wavelet_train.tables import table


class Shapes(click.ParamType):
    """Heights and widths of matrices, as in 2048x2048,4096x1024."""

    name = "shapes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[tuple[int, int]]:
        words = [re.fullmatch("([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", word.strip()) for word in str(value).split(",")]
        if not all(words):
            from wavelet_core.messages import shown

            self.fail(
                f"{shown(str(value))} must be heights and widths of matrices, as in 2048x2048,4096x1024", param, ctx
            )
        return [(int(word[1]), int(word[2])) for word in words if word]


class Names(click.ParamType):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [name.strip() for name in str(value).split(",")]
        if not all(names):
            from wavelet_core.messages import shown

            self.fail(f"{shown(str(value))} must be names separated by commas", param, ctx)
        return names


@click.group("bench", short_help="Measure how fast models run here.")
def command() -> None:
    """Measure how fast models run on this machine."""


command.add_command(train_command)


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
    help="Type of the weights. Default: as stored; for random ones float32, and bfloat16 with --formats.",
)
@device_option
@click.option(
    "--compiled",
    is_flag=True,
    help="Measure compiled steps: those that `wavelet compile` has put beside CHECKPOINT, or made now, in a minute.",
)
@click.option(
    "--no-replay", "replay", is_flag=True, default=True, flag_value=False, help="Compute every step as it is."
)
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
    "--formats",
    type=Names(),
    metavar="NAME,NAME,...",
    help="Compare formats side by side instead: bfloat16 and other types, int8, int4 and other recipes by name or "
    "file, and dequantize, 8 bits that become floating point before each product. Speeds are compared with the first.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1, 1_000_000),
    default=512,
    show_default=True,
    help="With --formats, also measure reading a prompt of so many tokens.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw latency against position: FILE.svg or FILE.png.",
)
@verify_option
@measurement_option
@json_option
@click.pass_context
def decode_command(
    ctx: click.Context,
    checkpoint: str | None,
    preset: str | None,
    random_weights: bool,
    overrides: tuple[str, ...],
    dtype: str | None,
    device: str,
    compiled: bool,
    replay: bool,
    threads: int | None,
    positions: list[int],
    token_by_token: bool,
    rounds: int,
    window_rounds: int,
    batches: list[int] | None,
    formats: list[str] | None,
    prompt_tokens: int,
    plot: Path | None,
    verify: bool,
    output: Path | None,
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
      wavelet bench decode --preset wikitext-103 --random --formats bfloat16,int8,int4 --batches 16
    """
    _refuse_unused(ctx, formats is not None)
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
        from wavelet_train.figures import check_picture

        check_picture(plot)

    import torch

    from wavelet_core.devices import resolve_device
    from wavelet_quant.decode_benchmark import decode_benchmark
    from wavelet_quant.format_benchmark import format_benchmark
    from wavelet_train.measurement import DECODING

    place = resolve_device(device, "--device")
    weight_type = None if dtype is None else getattr(torch, dtype)
    directory: Path | None = None
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
        default = torch.float32 if formats is None else torch.bfloat16
        model = random_model(vocabulary_resolved(run), weight_type or default).to(place)
        use_threads(threads or run.train.threads, model)
    name = checkpoint or f"{preset} (random weights)"
    if formats is not None:
        compared = format_benchmark(
            model, formats, rounds, batches or (), prompt_tokens, compiled=compiled, replay=replay
        )
        report = {"model": name, **compared}
        print_report(report, as_json, _describe_formats)
        save_measurement(output, report, _describe_formats, DECODING)
        return
    with tempfile.TemporaryDirectory() as folder:
        steps = _compiled_steps(model, directory, Path(folder), batches or ()) if compiled else None
        report = decode_benchmark(model, positions, rounds, window_rounds, batches or (), steps, token_by_token, replay)
    report = {"model": name, **report}
    if plot is not None:
        _plot(report, plot)
    print_report(report, as_json, _describe)
    save_measurement(output, report, _describe, DECODING)


def _compiled_steps(model: Any, directory: Path | None, folder: Path, batches: Sequence[int]) -> Path:
    """Where compiled steps are: the checkpoint directory that has them, or else `folder`, which gets them."""
    from wavelet_core.generation import DecodingSession, compile_steps, load_steps

    session = DecodingSession(model)
    if directory is not None and load_steps(session, directory):
        return directory
    compile_steps(session, folder, [1, *batches])
    return folder


def _refuse_unused(ctx: click.Context, compares_formats: bool) -> None:
    """Refuse options that would be ignored."""
    alone = ("positions", "token_by_token", "window_rounds", "plot")
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and compares_formats and parameter.name in alone:
            raise click.UsageError(f"{parameter.opts[0]} is not measured with --formats: leave out one of the two")
        if given and not compares_formats and parameter.name == "prompt_tokens":
            raise click.UsageError("--prompt-tokens needs --formats")


def _steps(report: dict[str, Any]) -> str:
    return "compiled" if report["compiled"] else "replayed" if report["replayed"] else "as they are"


def _describe_formats(report: dict[str, Any]) -> str:
    threads = report["threads"]
    title = (
        f"{report['model']}, {report['parameters']:,} parameters, {report['device']}, {threads} "
        f"thread{'s' if threads > 1 else ''}, steps {_steps(report)}, "
        f"kernels {', '.join(report['kernels']) or 'none'}, "
        f"{report['read_bandwidth'] / 1e9:.1f} GB/s read"
    )
    formats = report["formats"]
    prompt = f"prompt of {report['prompt_tokens']}"
    header = [
        "format",
        "weights",
        "read/token",
        "tokens/s",
        "share",
        "times first",
        f"{prompt}, tokens/s",
        "times first",
    ]
    for batch in formats[0]["batches"]:
        header += [f"{batch['streams']} streams, tokens/s", "times one"]
    rows = []
    for entry in formats:
        row = [
            entry["format"],
            byte_size(entry["weight_bytes"]),
            byte_size(entry["weight_bytes_per_token"]),
            f"{entry['tokens_per_second']:.1f}",
            f"{entry['share_of_bandwidth']:.0%}",
            f"{entry['speed_over_first']:.2f}",
            f"{entry['prompt_tokens_per_second']:.1f}",
            f"{entry['prompt_speed_over_first']:.2f}",
        ]
        for batch in entry["batches"]:
            row += [f"{batch['tokens_per_second']:.1f}", f"{batch['throughput_over_one']:.1f}"]
        rows.append(row)
    return titled(f"{title}\n{table(rows, header)}")


@command.command("kernels", short_help="Measure matrix products by format, shape, rows and instruction set.")
@click.option(
    "--shapes",
    type=Shapes(),
    default="2048x2048,4096x1024",
    show_default=True,
    metavar="HxW,HxW,...",
    help="Heights and widths of the matrices.",
)
@click.option(
    "--rows",
    type=Numbers(),
    default="1,2,3,5,7,12,13,16,33,64,128,512",
    show_default=True,
    metavar="N,N,...",
    help="Vectors that are multiplied at once.",
)
@click.option(
    "--formats",
    type=Names(),
    default="float32,bfloat16,float16,int8,int4,int2",
    show_default=True,
    metavar="NAME,NAME,...",
    help="How the matrices are stored; vectors for packed ones are in bfloat16.",
)
@click.option(
    "--instruction-sets",
    "sets",
    type=Names(),
    metavar="NAME,NAME,...",
    help="portable, avx2, avx512. Default: all that are here.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Turns of each product.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Processor threads. Default: all that may be used.")
@measurement_option
@json_option
def kernels_command(
    shapes: list[tuple[int, int]],
    rows: list[int],
    formats: list[str],
    sets: list[str] | None,
    rounds: int,
    threads: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure the native kernel's matrix products against torch's and against the read bandwidth.

    For each format, shape, number of rows and instruction set: bytes of the matrix, read once, a second; the share of
    what the library's own reading loop reaches; and how many times as fast as torch with the dense matrix, in bfloat16
    for a packed one. The matrices of a shape fill more memory than caches hold. What is compared takes turns, and
    ratios are medians of pairs.

    \b
    Examples:
      wavelet bench kernels --threads 1
      wavelet bench kernels --shapes 8192x2048 --rows 1,16 --formats bfloat16,int4 --json
    """
    import torch

    from wavelet_core.threads import available_processors
    from wavelet_quant.kernel_benchmark import kernel_benchmark
    from wavelet_train.measurement import KERNELS
    from wavelet_train.progress import Progress

    torch.set_num_threads(threads or available_processors())
    products = []
    with Progress("measuring", len(formats) * len(shapes) * len(rows), " products") as progress:
        for product in kernel_benchmark(shapes, rows, formats, sets, rounds):
            products += [asdict(way) for way in product]
            progress.advance(1)
    report = {
        "threads": torch.get_num_threads(),
        "read_bandwidth": statistics.median(product["bandwidth"] / product["share"] for product in products),
        "products": products,
    }
    print_report(report, as_json, _describe_kernels)
    save_measurement(output, report, _describe_kernels, KERNELS)


def _describe_kernels(report: dict[str, Any]) -> str:
    matrices: dict[str, dict[int, dict[str, str]]] = {}
    for product in report["products"]:
        rows = matrices.setdefault(f"{product['format']}, {product['height']} x {product['width']}", {})
        cells = rows.setdefault(product["rows"], {"rows": str(product["rows"])})
        cells[product["by"]] = f"{product['bandwidth'] / 1e9:.1f} GB/s {product['share']:4.0%}"
        if product["by"] != "torch":
            cells[product["by"]] += f" {product['over_torch']:6.2f} times torch"
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
    sections = [f"{threads}, {report['read_bandwidth'] / 1e9:.1f} GB/s read"]
    for matrix, rows in matrices.items():
        lines = list(rows.values())
        sections.append(titled(f"{matrix}\n{table([list(line.values()) for line in lines], list(lines[0]))}"))
    return "\n\n".join(sections)


def _describe(report: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = [
        ("model", f"{report['model']}, {report['parameters']:,} parameters, {report['dtype']}"),
        ("steps", _steps(report)),
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


def _plot(report: dict[str, Any], path: Path) -> None:
    """Latency against position, as a picture."""
    from wavelet_train.figures import COLORS, figure, save_figure

    with figure() as drawn:
        axes = drawn.subplots()
        positions = [at["position"] for at in report["latency"]]
        axes.plot(positions, [1e3 * at["seconds"] for at in report["latency"]], marker="o", label="stream")
        if "window_tokens" in report:
            label = f"window of {report['window_tokens']} tokens"
            axes.axhline(1e3 * report["window_seconds_per_token"], linestyle="--", color=COLORS[1], label=label)
        axes.set(xscale="log", xlabel="position in the text (tokens)", ylabel="time per token (ms)")
        axes.set(title=report["model"], ylim=(0, None))
        axes.legend()
    save_figure(drawn, path)
