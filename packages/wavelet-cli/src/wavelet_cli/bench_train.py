"""`wavelet bench train`: how fast models train here, and against other code or another model."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from wavelet_cli.output import print_report, save_measurement, titled
from wavelet_cli.shared_options import config_argument, device_option, json_option, measurement_option, set_option
from wavelet_train.quantities import byte_size, duration
from wavelet_train.tables import table

if TYPE_CHECKING:
    from wavelet_core.config import LanguageModelConfig
    from wavelet_train.training_benchmark import Contestant

COMPILED = {"no": [False], "yes": [True], "both": [False, True]}


@click.command("train", short_help="Measure what a training step costs, and against another model.")
@config_argument
@set_option
@click.option(
    "--against",
    multiple=True,
    metavar="REV_OR_FAMILY",
    help="Train another in turns with it: the same model by the code of a git revision or of a checkout's folder; the "
    "model of a preset or configuration file; or the family that a Python file registers. May be given many times.",
)
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(list(COMPILED)),
    default="no",
    show_default=True,
    help="Compile the loss, as with train.compile.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Type of the matrix products. Default: the configuration's train.precision.",
)
@device_option
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Processor threads. Default: the configuration's train.threads, or else all that may be used.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Steps measured of each.")
@measurement_option
@json_option
def train_command(
    config: str,
    overrides: tuple[str, ...],
    against: tuple[str, ...],
    compiled: str,
    precision: str | None,
    device: str,
    threads: int | None,
    rounds: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure what a training step of CONFIG costs: its optimizer, clipping and casts included, on random tokens.

    Reported: tokens per second; operations of the matrix products per token, and the share that is of the fastest
    matrix product measured in the same run; memory at the fullest moment of a step, of all tensors and of the process;
    and the time of each part of the model, forward and backward, from a profile of a step that is not compiled.

    Each model trains in its own process. They take turns, step by step, and ratios are medians of pairs.

    \b
    Examples:
      wavelet bench train demo
      wavelet bench train demo --against HEAD~1 --threads 1
      wavelet bench train benchmarks/configurations/training_speed.yaml \\
        --against benchmarks/nanogpt_block.py --compile both
      wavelet bench train demo --set model.layers=4 --against demo --precision float32 --json
    """
    from wavelet_cli.parameter_table import vocabulary_resolved
    from wavelet_cli.run_configuration import load_configuration
    from wavelet_core.threads import available_processors
    from wavelet_train.measurement import TRAINING
    from wavelet_train.progress import Progress
    from wavelet_train.training_benchmark import Contestant, training_benchmark

    run = load_configuration(config, overrides)
    settings = {"device": device, "threads": threads or run.train.threads or available_processors()}
    if precision is not None:
        settings["precision"] = precision
    run = run.model_copy(update={"train": run.train.model_copy(update=settings)})
    model = vocabulary_resolved(run)
    with TemporaryDirectory() as folder:
        opponents = [_opponent(name, model, Path(folder) / str(number)) for number, name in enumerate(against)]
        with Progress("measuring", rounds, " rounds") as progress:
            report = training_benchmark(
                run, [Contestant(config, model), *opponents], COMPILED[compiled], rounds, lambda: progress.advance(1)
            )
    report = {"configuration": config, **report}
    print_report(report, as_json, _describe)
    save_measurement(output, report, _describe, TRAINING)


def _opponent(name: str, model: LanguageModelConfig, folder: Path) -> Contestant:
    """What `--against` names; `folder` gets the code of a revision."""
    from wavelet_cli.run_configuration import load_configuration
    from wavelet_core.config import ConfigurationError
    from wavelet_train import PRESETS
    from wavelet_train.training_benchmark import Contestant

    path = Path(name)
    if path.suffix == ".py":
        return Contestant(name, _family(path, model), plugin=path.absolute())
    if path.is_file() or (PRESETS / f"{name}.yaml").is_file():
        other = load_configuration(name).model
        known = {"vocabulary_size": model.vocabulary_size} if other.vocabulary_size is None else {}
        return Contestant(name, other.model_copy(update=known))
    source = path if (path / "packages" / "wavelet-train").is_dir() else _revision(name, folder)
    if source is None:
        raise ConfigurationError(
            f"--against {name}: this is no preset, configuration file, Python file or checkout, and no revision of the "
            "git repository here"
        )
    click.echo(f"{name} computes with {', '.join(_native_libraries(source)) or 'no native library'}", err=True)
    return Contestant(name, model, source=source.absolute())


def _family(path: Path, model: LanguageModelConfig) -> LanguageModelConfig:
    """The configuration of the one model family that a Python file registers, for the same tokens."""
    from wavelet_core.config import ConfigurationError, parse_model
    from wavelet_train.training_worker import load_plugin

    plugin = load_plugin(path)
    families = [kind for component, kind in plugin.components if component == "model"]
    if len(families) != 1:
        raise ConfigurationError(
            f"--against {path}: it registers {len(families)} model families, not one, with register_components"
        )
    tokens = {"vocabulary_size": model.vocabulary_size, "context_length": model.context_length}
    return parse_model({"kind": families[0], **tokens})


def _revision(name: str, folder: Path) -> Path | None:
    """The packages of a git revision, written to a folder and built; None where git knows no such revision."""
    archive = folder.with_suffix(".zip")
    try:
        top = _git("rev-parse", "--show-toplevel")
        done = top and _git("-C", top, "archive", "--format=zip", "-o", str(archive), f"{name}^{{commit}}", "packages")
    except OSError:  # without git there are no revisions
        return None
    if done is None:
        return None
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    _build_native(folder)
    return folder


def _build_native(source: Path) -> None:
    """Build what the packages of a revision compile when they are installed, beside their sources, as an editable
    installation does; says on stderr what went wrong.
    """
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--hooks-only"]
    for hook in source.glob("packages/*/hatch_build.py"):
        done = subprocess.run(build, cwd=hook.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if said := done.stdout.strip():
            click.echo(f"building {hook.parent.name}: {said.splitlines()[-1]}", err=True)


def _native_libraries(source: Path) -> list[str]:
    """The names of the compiled libraries in a checkout's packages."""
    return sorted(path.name for path in source.glob("packages/*/src/**/*.so"))


def _git(*arguments: str) -> str | None:
    """What git says, None where it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _describe(report: dict[str, Any]) -> str:
    threads = report["threads"]
    products = ", ".join(f"{speed / 1e9:,.0f} in {name}" for name, speed in report["matrix_products"].items())
    title = (
        f"{report['configuration']}, {report['precision']}, {report['tokens']:,} tokens a step, {report['device']}, "
        f"{threads} thread{'s' if threads > 1 else ''}\nmatrix products, GFLOP/s: {products}"
    )
    header = ["model", "parameters", "tokens/s", "times first", "MFLOP/token"]
    header += [f"share of {name}" for name in report["matrix_products"]]
    header += ["peak of tensors", "of process", "first step"]
    rows = [
        [
            f"{model['name']}{', compiled' if model['compiled'] else ''}",
            model["parameters"],
            f"{model['tokens_per_second']:,.0f}",
            f"{model['speed_over_first']:.2f}",
            f"{model['flops_per_token'] / 1e6:.1f}",
            *(f"{share:.0%}" for share in model["share_of_peak"].values()),
            byte_size(model["peak_tensors"]),
            "" if model["peak_resident"] is None else byte_size(model["peak_resident"]),
            duration(model["first_step_seconds"]),
        ]
        for model in report["models"]
    ]
    return f"{titled(title)}\n\n{table(rows, header)}\n\n{_describe_parts(report['breakdown'])}"


def _describe_parts(breakdown: dict[str, dict[str, float]]) -> str:
    whole = sum(sum(part.values()) for part in breakdown.values())
    rows = [
        [name, *(f"{1e3 * part[way]:.1f}" for way in ("forward", "backward")), f"{sum(part.values()) / whole:.1%}"]
        for name, part in sorted(breakdown.items(), key=lambda item: -sum(item[1].values()))
        if sum(part.values()) > 5e-4 * whole
    ]
    title = f"one step of the first model, not compiled, under a profiler: {1e3 * whole:.0f} ms"
    return titled(f"{title}\n{table(rows, ['part', 'forward, ms', 'backward, ms', 'share'])}")
