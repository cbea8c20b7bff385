"""What weights in fewer bits cost: bits per byte of held-out text by recipe, beside those of bfloat16 weights.

Each run directory's best checkpoint is scored on a held-out split of its data, in the windows of `wavelet evaluate`:
with its weights in bfloat16, and then as every recipe stores them. Recipes with formats that round by their inputs are
calibrated on windows of the training data, and stand in the table without calibration, too. Sizes are those of the
weights in memory, scales included. The divergence is that of the predictions from those of bfloat16 weights, in bits
per byte: it is never negative, and changes less from text to text than the difference between two scores does.

    python benchmarks/quantization_quality.py [RUN...] [--recipe int4]... [--split test] [--tokens 60000]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from wavelet_core.checkpoint import load_checkpoint, locate_checkpoint, read_config
from wavelet_core.config import parse
from wavelet_core.tokenizers import Tokenizer, checkpoint_tokenizer
from wavelet_quant import load_recipe, preset_recipes, quantize, weight_bytes
from wavelet_quant.calibration import collect_hessians, draw_windows
from wavelet_train.data import DataConfig, PreparedData
from wavelet_train.evaluation import evaluate
from wavelet_train.tables import table
from wavelet_train.token_split import TokenSplit

BATCH = 8
HALF = {"rules": [{"modules": "*", "format": {"kind": "dense", "dtype": "bfloat16"}}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs/demo, which `make demo` trains, by default")
    parser.add_argument("--recipe", dest="recipes", action="append", help="a preset or a file; all presets by default")
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="what is scored; test by default"
    )
    parser.add_argument("--tokens", type=int, help="how many of the split are scored; all by default")
    parser.add_argument("--windows", type=int, default=256, help="of the training data, to calibrate with")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for run in options.runs or ["runs/demo"]:
        if not options.runs and not Path(run).exists():
            parser.exit(message=f"{run} does not exist: `make demo` trains it\n")
        rows = []
        for row in qualities(run, options):
            rows.append(row)
            print(json.dumps({"run": run, **row}), file=sys.stderr, flush=True)
        print(f"{run}\n{table([_cells(row, rows[0]) for row in rows], HEADER)}\n", flush=True)
        print(json.dumps({"run": run, "rows": rows}))


def qualities(run: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for the weights in bfloat16, and one or two for each recipe."""
    directory = locate_checkpoint(run)
    model = load_checkpoint(directory)
    tokenizer = checkpoint_tokenizer(directory, model.config.vocabulary, verify=False)
    data = PreparedData(parse(DataConfig, read_config(directory)["data"], "data"), tokenizer)
    drawn = draw_windows(data.split("train").tokens, model.config.context_length, options.windows).split(BATCH)
    held_out = data.split(options.split)
    reference = quantize(model, HALF)
    yield _row("bfloat16", False, reference, reference, held_out, tokenizer, options.tokens)
    for name in options.recipes or preset_recipes():
        recipe = load_recipe(name)
        for calibrated in (False, True) if recipe.rounds_by_inputs else (False,):
            model = load_checkpoint(directory, verify=False)
            quantize(model, recipe, collect_hessians(model, drawn) if calibrated else ())
            yield _row(recipe.name, calibrated, model, reference, held_out, tokenizer, options.tokens)


def _row(
    name: str,
    calibrated: bool,
    model: Any,
    reference: Any,
    held_out: TokenSplit,
    tokenizer: Tokenizer,
    tokens: int | None,
) -> dict[str, Any]:
    stride = model.config.context_length // 2
    score = evaluate(model, held_out, tokenizer, stride, BATCH, token_limit=tokens)
    return {
        "recipe": name,
        "calibrated": calibrated,
        "bytes": weight_bytes(model),
        "bits_per_byte": score.bits_per_byte,
        "divergence": divergence(model, reference, held_out, score.byte_count / score.tokens),
        "tokens": score.tokens,
    }


@torch.no_grad()
def divergence(model: Any, reference: Any, held_out: TokenSplit, bytes_per_token: float) -> float:
    """The Kullback-Leibler divergence of a model's predictions from a reference's on 64 windows, in bits per byte."""
    total, count = 0.0, 0
    for window in draw_windows(held_out.tokens, model.config.context_length, 64).split(BATCH):
        expected, got = (each.eval()(window).log_softmax(-1) for each in (reference, model))
        total += (expected.exp() * (expected - got)).sum().item()
        count += window.numel()
    return total / count / math.log(2) / bytes_per_token


HEADER = ("recipe", "calibrated", "MB", "bits per byte", "difference", "divergence")


def _cells(row: dict[str, Any], first: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["recipe"],
        "yes" if row["calibrated"] else "",
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['bits_per_byte']:.4f}",
        f"{row['bits_per_byte'] - first['bits_per_byte']:+.4f}",
        f"{row['divergence']:.4f}",
    )


if __name__ == "__main__":
    main()
