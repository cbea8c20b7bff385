"""What is measured of a training step: its operations, its memory, and the part that each moment belongs to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from wavelet_core import WaveletLM
from wavelet_core.block import MemorySum
from wavelet_train.training_worker import LOSS, OPTIMIZER, Worker


@pytest.fixture
def new_worker(tiny_run, tmp_path: Path):
    def new(*overrides: str) -> Worker:
        run = tiny_run("model.vocabulary_size=300", *overrides)
        return Worker(run.model_dump(mode="json", exclude_defaults=True), str(tmp_path / "run"))

    return new


def test_a_step_trains_on_tokens_of_the_whole_vocabulary(new_worker):
    worker = new_worker("train.batch_size=8")
    before = worker.trainer.model.embedding.weight.clone()
    assert worker.step() > 0
    touched = (worker.trainer.model.embedding.weight != before).any(-1)
    assert touched[256:].any()
    assert worker.describe()["tokens"] == 8 * 16


def test_operations_are_those_of_all_matrix_products(new_worker):
    counts = [new_worker(f"model.vocabulary_size={size}").flops() for size in (300, 400)]
    # The head's product, and those of its two gradients, for 32 tokens of 16 channels.
    assert counts[1] - counts[0] == 3 * 2 * 32 * 16 * 100


def test_memory_is_that_of_the_fullest_moment(new_worker, monkeypatch):
    worker = new_worker()
    worker.step()  # the optimizer has its state from then on
    kept = 4 * sum(p.numel() for p in worker.trainer.parameters.values())
    plain = worker.memory()["tensors"]
    loss = WaveletLM.loss

    def hungry(self: Any, *arguments: Any) -> torch.Tensor:
        torch.empty(1 << 24, dtype=torch.uint8)
        return loss(self, *arguments)

    monkeypatch.setattr(WaveletLM, "loss", hungry)
    assert plain is not None and 4 * kept < plain < 1 << 24  # weights, gradients and two moments at least
    more = worker.memory()["tensors"]
    assert more is not None and more - (1 << 24) < plain < more


def test_time_belongs_to_parts(new_worker, monkeypatch):
    worker = new_worker("model.memories=[{kind: mlp}, {kind: product_key, num_keys: 16, top_k: 2}]")
    parts = worker.breakdown()
    assert {"wavelet", "mixer", "transform", "memory mlp", "memory product_key", LOSS, OPTIMIZER} <= parts.keys()
    assert all(parts[part]["backward"] > 0 for part in ("wavelet", "mixer", "transform", "memory product_key", LOSS))
    assert parts[OPTIMIZER]["backward"] == 0


@pytest.mark.parametrize(("way", "direction"), [("forward", "forward"), ("backward", "backward")])
def test_a_slow_part_is_seen_where_it_is_slow(new_worker, monkeypatch, way, direction):
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.2 * (way == "forward"))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            time.sleep(0.2 * (way == "backward"))
            return gradient

    forward = MemorySum.forward
    monkeypatch.setattr(MemorySum, "forward", lambda self, q, state=None: Slow.apply(forward(self, q, state)))
    parts = new_worker().breakdown()
    assert parts["memories"][direction] > 0.2
    assert sum(sum(part.values()) for part in parts.values()) - parts["memories"][direction] < 0.2
