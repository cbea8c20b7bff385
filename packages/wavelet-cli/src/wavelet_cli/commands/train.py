"""`wavelet train`: train a model, or go on with a run that was stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from wavelet_cli import completion
from wavelet_cli.output import print_json, print_report
from wavelet_cli.shared_options import json_option, set_option


@click.command("train", short_help="Train a model, or go on with a run that was stopped.")
@click.argument("config", required=False, shell_complete=completion.configurations)
@set_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for checkpoints and metrics; by default runs/ and the name of CONFIG.",
)
@click.option(
    "--resume",
    metavar="RUN",
    type=click.Path(path_type=Path, file_okay=False),
    shell_complete=completion.checkpoints,
    help="Go on with the run in this directory, in its own configuration where no CONFIG is given.",
)
@click.option("--overwrite", is_flag=True, help="Start anew even if the directory holds a run.")
@click.option("--accept-changed-data", is_flag=True, help="Resume also if the text is no longer what it was.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done and how long it should take, and stop there; only the token cache is written.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    config: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    overwrite: bool,
    accept_changed_data: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train the model of CONFIG, a preset (see `wavelet config list`) or a YAML or JSON file.

    The run's directory gets config.yaml, metrics.jsonl and the checkpoints best/ and last/. Ctrl-C saves and stops.
    At the end the best checkpoint is evaluated on the whole validation split.

    A run is resumed with its own tokenizer and on the text that it was trained on. What of its configuration changes is
    said, and refused where the run cannot take it.

    Started by torchrun, several processes train one model together: docs/scaling.md.

    \b
    Examples:
      wavelet train demo --out runs/demo
      wavelet train demo --dry-run
      wavelet train demo --set train.lr=0.002 --set model.mixer.rank=8
      wavelet train my.yaml --set data.dataset='{kind: text, path: books}'
      wavelet train --resume runs/demo
      wavelet train --resume runs/demo --set train.steps=4000
      torchrun --nproc-per-node 4 -m wavelet_cli train my.yaml --set train.parallel=fsdp
    """
    if resume is not None and (out is not None or overwrite):
        raise click.UsageError("--resume goes on in the run's own directory: leave out --out and --overwrite")
    if accept_changed_data and resume is None:
        raise click.UsageError("--accept-changed-data belongs to --resume: a new run takes the text as it is")
    if resume is None and config is None:
        raise click.UsageError("name a CONFIG to train (see `wavelet config list`), or a run with --resume")

    from wavelet_cli.failures import Failure
    from wavelet_cli.run_configuration import load_configuration
    from wavelet_core.atomic_files import WriteError
    from wavelet_core.config import ConfigurationError
    from wavelet_core.tensor_files import CheckpointError
    from wavelet_train.divergence import DivergenceError
    from wavelet_train.run_directory import CONFIG_FILE
    from wavelet_train.trainer import plan_training, train

    directory = resume or out or Path("runs") / Path(config or "").stem
    if resume is not None and config is None and not (resume / CONFIG_FILE).is_file():
        raise ConfigurationError(
            f"--resume {resume}: this directory holds no run, it has no {CONFIG_FILE}; name a run's"
        )
    first = os.environ.get("RANK", "0") == "0"
    run = load_configuration(config or directory / CONFIG_FILE, overrides)
    try:
        if dry_run:
            plan = plan_training(run, directory, resume is not None, overwrite, accept_changed_data)
            print_report(plan.as_dict(), as_json, lambda _: str(plan))
            plan.warn()
            return
        result = train(run, directory, resume is not None, overwrite, accept_changed_data)
    except FileExistsError:
        if not first:
            ctx.exit(1)
        raise FileExistsError(
            f"{directory} holds a run already: go on with it by --resume {directory}, start it anew with --overwrite, "
            "or name another directory with --out"
        ) from None
    except (ConfigurationError, CheckpointError, DivergenceError):
        if not first:  # it is the same in all of them
            ctx.exit(1)
        raise
    except WriteError as error:
        if not (directory / "last").is_dir():
            raise
        raise Failure(f"{error}. Then go on with: wavelet train --resume {directory}") from error
    if not first:
        pass  # torchrun has started several processes, of which the first speaks
    elif as_json:
        report = result.report and result.report.as_dict()
        state = {"directory": str(result.directory), "step": result.step, "steps": result.steps}
        print_json({**state, "stopped_by": result.stopped_by, "report": report})
    elif result.report is not None:
        click.echo(f'{result.report}\nTry it: wavelet generate {result.directory} "..."')
    if result.stopped_by is not None:
        ctx.exit(128 + signal.Signals[result.stopped_by])
