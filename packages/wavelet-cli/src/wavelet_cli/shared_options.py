"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")

device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Processor threads. Default: the run's train.threads, or else by the model's size and what is idle.",
)

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override a field, as in train.lr=0.02; values are YAML. May be given many times.",
)


def _refuse_filled(_: click.Context, parameter: click.Parameter, path: Path) -> Path:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise click.BadParameter(f"{path} exists already; name a new directory", param=parameter)
    return path


new_directory_argument = click.argument("out", type=click.Path(path_type=Path), callback=_refuse_filled)
