"""`wavelet sweep`: many runs of one configuration with other values of some fields."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import click

from wavelet_cli import completion
from wavelet_cli.output import print_report
from wavelet_cli.shared_options import json_option


@click.command("sweep", short_help="Train with several values of some fields and name the best.")
@click.argument("config", shell_complete=completion.configurations)
@click.option(
    "--set",
    "arguments",
    metavar="FIELD=VALUES",
    multiple=True,
    shell_complete=completion.fields,
    help="A list (a,b,c), a range (LOW..HIGH, log:LOW..HIGH) or one value for all runs. May be given many times.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for the runs and results; by default runs/sweep- and the name of CONFIG.",
)
@click.option(
    "--search",
    type=click.Choice(["grid", "tpe"]),
    help="grid: every combination; tpe: what the runs so far make likely to be good. [grid where all are lists]",
)
@click.option("--runs", type=click.IntRange(1, 1_000_000), help="Runs of --search tpe, earlier ones counted. [20]")
@click.option(
    "--side-by-side", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at the same time here."
)
@click.option("--storage", metavar="URL", help="Where Optuna keeps the sweep, for several machines. [SQLite in --out]")
@click.option("--study", default="sweep", show_default=True, help="The sweep's name in a storage that holds several.")
@click.option("--no-prune", "prune", is_flag=True, flag_value=False, default=True, help="Finish hopeless runs, too.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of --search tpe.")
@click.option("--release", metavar="HOST", help="First let others do what this machine left unfinished for good.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    config: str,
    arguments: tuple[str, ...],
    out: Path | None,
    search: str | None,
    runs: int | None,
    side_by_side: int,
    storage: str | None,
    study: str,
    prune: bool,
    seed: int,
    release: str | None,
    as_json: bool,
) -> None:
    """Train CONFIG with several values of some fields, and say which were best.

    Each run is trained as `wavelet train` would, into runs/NNN below --out. A run is given up when it is worse than the
    median of the others was at the same part of their steps, from a quarter on. The best configuration is written to
    best.yaml, a figure to sweep.png.

    The same command goes on with a sweep that was stopped or killed: finished runs stay, unfinished ones are resumed.
    On several machines give it the same --storage; each works in its own --out until no run is left.

    \b
    Examples:
      wavelet sweep demo --set train.lr=0.003,0.01,0.03
      wavelet sweep demo --set train.lr=log:1e-3..3e-2 --runs 12 --side-by-side 2
      wavelet sweep demo --set train.lr=0.003,0.01 --set model.mixer.rank=0,4 --set train.steps=400
      wavelet sweep my.yaml --set train.lr=log:1e-4..1e-2 --runs 50 --storage mysql://me@host/sweeps --study big
    """
    from wavelet_cli.run_configuration import load_configuration
    from wavelet_core.config import ConfigurationError
    from wavelet_train.search_space import Choices, parse_arguments

    overrides, space = parse_arguments(arguments)
    lists = all(isinstance(dimension, Choices) for dimension in space)
    tpe = search == "tpe" or (search is None and not lists)
    if not tpe and runs is not None:
        raise click.UsageError("--runs belongs to --search tpe: a grid has as many runs as combinations")
    configuration = load_configuration(config, overrides)
    try:
        from wavelet_train.figures import require_matplotlib, save_figure
        from wavelet_train.side_by_side import work_side_by_side
        from wavelet_train.sweep import Plan, Sweep, work_on
        from wavelet_train.sweep_results import FIGURE_FILE, draw, results_of, write_best
    except ImportError as error:
        if "sweep" in str(error):
            raise ConfigurationError(str(error)) from error
        raise

    directory = out or Path("runs") / f"sweep-{Path(config).stem}"
    plan = Plan(configuration, space, (runs or 20) if tpe else None, prune, seed, storage, study)
    sweep = Sweep(plan, directory)
    if release is not None:
        click.echo(f"{sweep.release(release)} unfinished runs of {release} are free to be done", err=True)
    if side_by_side > 1:
        stopped_by = work_side_by_side(partial(work_on, plan, directory), directory, side_by_side)
    else:
        stopped_by = sweep.work()

    results = results_of(sweep)
    best = write_best(sweep, results)
    print_report(results.as_dict(), as_json, lambda _: str(results))
    try:
        require_matplotlib()
        save_figure(draw(results), directory / FIGURE_FILE)
        print(f"Figure: {directory / FIGURE_FILE}", file=sys.stderr)
    except ConfigurationError as error:
        print(f"No figure was drawn: {error}", file=sys.stderr)
    if best is not None and not as_json:
        run = results.runs[0]
        values = " ".join(f"{path}={value}" for path, value in run.values.items())
        click.echo(f"Best: run {run.number}, {values}: {run.bits_per_byte:.4f} bits per byte")
        click.echo(f"Train it again: wavelet train {best}")
    if stopped_by is not None:
        click.echo(f"Stopped by {stopped_by}. Repeat the command to go on.", err=True)
        ctx.exit(128 + signal.Signals[stopped_by])
    if best is None:
        ctx.exit(1)
