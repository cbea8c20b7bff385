"""`wavelet compare`: model families side by side."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from wavelet_cli.output import print_report, save_measurement
from wavelet_cli.shared_options import json_option, measurement_option, set_option


@click.command("compare", short_help="Train model families side by side and say which is best.")
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for runs and results; by default runs/compare- and the name of SPEC.",
)
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs side by side.")
@click.option("--dry-run", is_flag=True, help="Measure what steps cost, list the runs and their time, and end.")
@measurement_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    spec: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    jobs: int,
    dry_run: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare the arms of SPEC, a YAML file: configurations of any model families on the same data and tokenizer.

    First what a training step of each costs is measured, in turns; budgets in seconds, operations or tokens become
    numbers of steps by it. Then the learning rate of each is tuned by the same sweep of short runs, and each is trained
    with several seeds.

    The same command goes on with a comparison that was stopped or killed; no run is done twice. More arms, seeds and
    budgets may be added to SPEC later.

    \b
    Examples:
      wavelet compare benchmarks/comparisons/quick.yaml --dry-run
      wavelet compare benchmarks/comparisons/quick.yaml --jobs 2
      wavelet compare benchmarks/comparisons/small.yaml --jobs 2 --out runs/prose \\
        --set run.data.dataset='{kind: text, path: prose.txt}'
    """
    from wavelet_core.config import ConfigurationError

    try:
        from wavelet_train.comparison.compare import compare, plan_comparison
        from wavelet_train.comparison.plan import make_plan
        from wavelet_train.comparison.spec import load_comparison
        from wavelet_train.measurement import COMPARISON
    except ImportError as error:
        if "sweep" in str(error):
            raise ConfigurationError(str(error)) from error
        raise

    directory = out or Path("runs") / f"compare-{spec.stem}"
    work = plan_comparison(load_comparison(spec, overrides), directory, jobs)
    if dry_run:
        plan = make_plan(work, jobs)
        print_report(plan.as_dict(), as_json, lambda _: str(plan))
        return
    results, stopped_by = compare(work, jobs)
    print_report(results.as_dict(), as_json, lambda _: str(results))
    save_measurement(output, results.as_dict(), lambda _: str(results), COMPARISON)
    if stopped_by is not None:
        click.echo(f"Stopped by {stopped_by}. Repeat the command to go on.", err=True)
        ctx.exit(128 + signal.Signals[stopped_by])
