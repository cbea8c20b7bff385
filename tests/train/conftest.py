"""A run small enough to be trained in a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wavelet_train.run_config import RunConfig, load_run_config
from wavelet_train.run_directory import RunDirectory
from wavelet_train.trainer import Trainer

TinyRun = Callable[..., RunConfig]
NewTrainer = Callable[..., Trainer]

TINY = """
model:
  width: 16
  layers: 1
  levels: 2
  context_length: 16
  memories: [{kind: mlp, expansion: 2}]
data:
  dataset: {kind: text, train: train.txt, validation: validation.txt}
  tokenizer: bytes
  cache_directory: cache
train:
  device: cpu
  precision: float32
  steps: 6
  batch_size: 2
  lr: 0.01
  log_every: 1
  validate_every: 3
"""


@pytest.fixture
def tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """Make the configuration of a tiny run, with overrides as on the command line: `tiny_run("train.lr=0.1")`."""
    monkeypatch.chdir(tmp_path)
    sentences = [f"the {noun} {verb} a stone.\n" for noun in ("fox", "dog", "owl") for verb in ("sees", "finds", "has")]
    (tmp_path / "train.txt").write_text("".join(sentences) * 8)
    (tmp_path / "validation.txt").write_text("".join(sentences[:4]))
    (tmp_path / "tiny.yaml").write_text(TINY)
    return lambda *overrides: load_run_config(tmp_path / "tiny.yaml", overrides)


@pytest.fixture
def new_trainer(tiny_run: TinyRun, tmp_path: Path) -> NewTrainer:
    """Make a trainer of a tiny run with overrides, ready for its first step."""
    return lambda *overrides: Trainer(tiny_run(*overrides), RunDirectory(tmp_path / "run"))


@pytest.fixture(scope="session")
def read_metrics() -> Callable[..., list[dict[str, Any]]]:
    """Read a run's metrics without the fields that tell the time, all of them or those of one event."""

    def read(directory: Path, event: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("tokens_per_second", None)
            line.pop("seconds", None)
        return [line for line in lines if event in (None, line["event"])]

    return read
