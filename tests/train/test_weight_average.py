"""The average of the weights over training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from wavelet_train.run_config import RunConfig
from wavelet_train.trainer import Trainer, train
from wavelet_train.weight_average import WeightAverage, WeightAverageConfig

TinyRun = Callable[..., RunConfig]
AVERAGED = "train.weight_average.decay=0.9"


def test_average_follows_its_formula() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -1.0]))
    average = WeightAverage(WeightAverageConfig(decay=0.5), {"weight": weight})
    expected = weight.detach().clone()
    for number in range(30):
        weight.data = torch.tensor([float(number), 2.0])
        average.update()
        kept = min(0.5, (1 + number) / (10 + number))
        expected = kept * expected + (1 - kept) * weight.detach()
    with average.applied():
        torch.testing.assert_close(weight.detach(), expected)
    assert weight.tolist() == [29.0, 2.0]


def test_weights_come_back_whatever_happens() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage(WeightAverageConfig(), {"weight": weight})
    weight.data.fill_(3.0)
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert weight.item() == 1.0
        raise KeyboardInterrupt
    assert weight.item() == 3.0


@pytest.mark.parametrize("background", ["true", "false"])
def test_best_holds_the_average_and_last_both(
    background: str, tiny_run: TinyRun, tmp_path: Path, read_metrics: Any
) -> None:
    saves = ("train.checkpoint_every=2", f"train.background_saves={background}")
    train(tiny_run(*saves), tmp_path / "plain")
    train(tiny_run(*saves, AVERAGED), tmp_path / "run")
    plain, last = (load_file(tmp_path / run / "last" / "model.safetensors") for run in ("plain", "run"))
    assert all(last[name].equal(plain[name]) for name in plain), "training itself is the same"
    state = load_file(tmp_path / "run" / "last" / "trainer" / "state.safetensors")
    best = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all(best[name].equal(state[f"average.parameters.{name}"]) for name in best)
    assert not best["head.weight"].equal(last["head.weight"])
    losses, averaged = (read_metrics(tmp_path / run, "validation") for run in ("plain", "run"))
    assert losses[-1]["nats_per_token"] != averaged[-1]["nats_per_token"]


def test_average_can_be_turned_on_and_off_when_a_run_goes_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run("train.steps=3"), tmp_path / "run")
    at_three = load_file(tmp_path / "run" / "last" / "model.safetensors")
    train(tiny_run("train.steps=4", "train.lr=1e-30", AVERAGED), tmp_path / "run", resume=True)
    best = load_file(tmp_path / "run" / "last" / "trainer" / "state.safetensors")
    torch.testing.assert_close(best["average.parameters.head.weight"], at_three["head.weight"])
    train(tiny_run("train.steps=6"), tmp_path / "run", resume=True)
    state = load_file(tmp_path / "run" / "last" / "trainer" / "state.safetensors")
    assert not any(name.startswith("average") for name in state)


def test_without_it_nothing_is_kept(new_trainer: Callable[..., Trainer]) -> None:
    trainer = new_trainer()
    assert trainer.average is None
    assert not any(name.startswith("average") for name in trainer.state_tensors())
