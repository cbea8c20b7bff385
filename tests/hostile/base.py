"""The good input that is spoilt: texts, a tiny run stopped on its way, its token cache, and its export."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import yaml

STEPS, STOPPED_AT = 6, 4
CONFIGURATION: dict[str, Any] = {
    "model": {
        "width": 16,
        "layers": 1,
        "levels": 2,
        "context_length": 16,
        "memories": [
            {"kind": "mlp", "expansion": 2},
            {"kind": "product_key", "num_keys": 16, "top_k": 2},
            {"kind": "fast_weight_product_key", "num_keys": 16, "top_k": 2},
        ],
    },
    "data": {
        "dataset": {"kind": "text", "train": "texts/train.txt", "validation": "texts/validation.txt"},
        "tokenizer": {"kind": "byte_pair", "vocabulary_size": 280},
        "cache_directory": "cache",
    },
    "train": {
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "steps": STEPS,
        "batch_size": 2,
        "lr": 0.01,
        "schedule": {"kind": "constant"},
        "log_every": 1,
        "validate_every": 2,
    },
}
EVALUATE = ("evaluate", "run", "--split", "validation", "--json")


def write_inputs(folder: Path) -> None:
    """The texts and the configuration that a run needs."""
    words = random.Random(0).choices(["the", "fox", "sees", "a", "stone", "and", "an", "owl", "über", "漢字"], k=2000)
    text = " ".join(words).replace("stone ", "stone.\n")
    (folder / "texts").mkdir()
    (folder / "texts" / "train.txt").write_text(text[:5000], encoding="utf-8")
    (folder / "texts" / "validation.txt").write_text(text[5000:5400], encoding="utf-8")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIGURATION), encoding="utf-8")


def make_runs() -> None:
    """Train in the present folder, as a process that gets Ctrl-C on the way, and export what it saved."""
    from wavelet_cli.main import cli
    from wavelet_train.schedules import Constant

    rate = Constant.__call__

    def rate_and_interrupt(self: Constant, step: int) -> float:
        if step == STOPPED_AT - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(self, step)

    Constant.__call__ = rate_and_interrupt  # type: ignore[method-assign]
    for arguments in (["train", "tiny.yaml", "--out", "run"], ["export", "run", "exported", "--format", "seed"]):
        try:
            cli(arguments, prog_name="wavelet")
        except SystemExit as end:
            if end.code not in (0, 130):
                raise
