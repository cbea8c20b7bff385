"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wavelet_cli import completion
from wavelet_cli.component_option import Component

json_option = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=completion.devices,
    help="auto, cpu, cuda, cuda:1, mps, ...",
)

verify_option = click.option(
    "--no-verify",
    "verify",
    is_flag=True,
    default=True,
    flag_value=False,
    help="Do not check first that the checkpoint's files are what was saved.",
)

quantize_option = click.option(
    "--quantize",
    "recipe",
    metavar="RECIPE",
    shell_complete=completion.recipes,
    help="Quantize the weights after loading: int8, int4, mixed-8-4-2, mixed-conservative, or a recipe's file.",
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Processor threads. Default: the run's train.threads, or else by the model's size and what is idle.",
)


def _use_kernel(ctx: click.Context, _: click.Parameter, kernel: Any) -> None:
    if kernel is not None and not ctx.resilient_parsing:
        from wavelet_core.kernels import use_kernel

        use_kernel(kernel)


kernel_option = click.option(
    "--kernel",
    type=Component(),
    metavar="YAML",
    callback=_use_kernel,
    expose_value=False,
    shell_complete=completion.components("kernel"),
    help="What multiplies, by name or as {kind: native, instruction_set: avx2}; torch for torch's own products. "
    "Default: WAVELET_KERNEL, or else the best that is there.",
)

measurement_option = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the figures, with command, machine, date and revision, to a file, as in benchmarks/results/.",
)

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    shell_complete=completion.fields,
    help="Override a field, as in train.lr=0.02; values are YAML. May be given many times.",
)


config_argument = click.argument("config", shell_complete=completion.configurations)

checkpoint_argument = click.argument("checkpoint", shell_complete=completion.checkpoints)


def is_taken(path: Path) -> bool:
    """Whether something is in a place where a directory is to be written; an empty one is nothing."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _refuse_filled(_: click.Context, parameter: click.Parameter, path: Path) -> Path:
    if is_taken(path):
        raise click.BadParameter(f"{path} exists already; name a new directory", param=parameter)
    return path


new_directory_argument = click.argument("out", type=click.Path(path_type=Path), callback=_refuse_filled)
