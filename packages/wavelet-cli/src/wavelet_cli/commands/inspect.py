"""`wavelet inspect`: what a checkpoint holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from wavelet_cli.output import print_report, titled
from wavelet_cli.shared_options import checkpoint_argument, json_option
from wavelet_train.quantities import byte_size
from wavelet_train.tables import table


@click.command("inspect", short_help="Show what a checkpoint holds.")
@checkpoint_argument
@json_option
def command(checkpoint: str, as_json: bool) -> None:
    """Show what CHECKPOINT holds: model, parameters, stored types, tokenizer, files, and the packages it needs.

    Nothing but headers is read from its weights.

    \b
    Examples:
      wavelet inspect runs/demo
      wavelet inspect runs/demo --json
    """
    from wavelet_core.checkpoint import locate_checkpoint

    print_report(_report(locate_checkpoint(checkpoint)), as_json, _describe)


def _report(directory: Path) -> dict[str, Any]:
    from wavelet_cli.parameter_table import parameter_report
    from wavelet_core.checkpoint import TOKENIZER_DIRECTORY, WEIGHTS_FILE, read_config, read_model_config
    from wavelet_core.tensor_files import open_tensors
    from wavelet_core.tokenizers import FILE_NAME

    model = read_model_config(directory)
    with open_tensors(directory / WEIGHTS_FILE) as file:
        types = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
    tokenizer = directory / TOKENIZER_DIRECTORY / FILE_NAME
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        "checkpoint": str(directory),
        "model": model.model_dump(mode="json"),
        "components": read_config(directory).get("components", {}),
        "parameters": parameter_report(model),
        "tensor_types": dict(types),
        "tokenizer": json.loads(tokenizer.read_text("utf-8"))["kind"] if tokenizer.is_file() else None,
        "files": {str(path.relative_to(directory)): path.stat().st_size for path in files},
    }


def _describe(report: dict[str, Any]) -> str:
    from wavelet_cli.parameter_table import parameter_table

    model = report["model"]
    sizes = [f"{name.replace('_', ' ')} {value}" for name, value in model.items() if type(value) is int]
    types = ", ".join(f"{name} ({count} tensors)" for name, count in report["tensor_types"].items())
    return "\n\n".join(
        [
            table(
                [
                    ("checkpoint", report["checkpoint"]),
                    ("model", ", ".join([model["kind"], *sizes])),
                    ("types", types),
                    ("tokenizer", report["tokenizer"] or "none"),
                ]
            ),
            parameter_table(report["parameters"]),
            titled(table(list(report["components"].items()), ("component", "comes from"))),
            titled(table([(name, byte_size(size)) for name, size in report["files"].items()], ("file", "size"))),
        ]
    )
