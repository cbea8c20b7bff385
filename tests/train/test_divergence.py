"""Steps without numbers are skipped, and too many of them in a row stop a run with a diagnosis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wavelet_train.divergence import DivergenceError, first_not_finite
from wavelet_train.run_config import RunConfig
from wavelet_train.trainer import Trainer, train
from wavelet_train.training_state import read_state

TinyRun = Callable[..., RunConfig]
Metrics = Callable[..., list[dict[str, Any]]]
NewTrainer = Callable[..., Trainer]


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], what: str = "loss") -> None:
    """Let a run's loss, or its gradients, be infinite in some of its steps."""
    original = Trainer.loss_of

    def spoilt(self: Trainer, *arguments: Any) -> Tensor:
        loss = original(self, *arguments)
        if self.counters.step + 1 not in steps:
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
            return loss
        return loss * float("inf")

    monkeypatch.setattr(Trainer, "loss_of", spoilt)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_without_numbers_changes_only_the_place_in_the_text(
    what: str, new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipping, other = new_trainer("train.accumulation=2"), new_trainer("train.accumulation=2")
    spoil(monkeypatch, {1}, what)
    before = {name: tensor.clone() for name, tensor in skipping.model.state_dict().items()}
    skipping.take_step(0.1)
    assert (skipping.counters.skipped, skipping.counters.skipped_in_row) == (1, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in skipping.model.state_dict().items())
    assert not skipping.optimizer.state
    for _ in range(2):
        next(other.windows)
    skipping.counters.step = other.counters.step = 1
    assert skipping.take_step(0.1) == other.take_step(0.1)
    assert (skipping.counters.skipped, skipping.counters.skipped_in_row) == (1, 0)


def test_skipped_steps_are_counted_and_resumed(
    tiny_run: TinyRun,
    tmp_path: Path,
    read_metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, {2, 3, 5})
    train(tiny_run("train.order=contiguous"), tmp_path / "run")
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["skipped"] for line in lines] == [0, 1, 2, 2, 3, 3]
    assert [line["loss"] is None for line in lines] == [False, True, True, False, True, False]
    assert read_state(tmp_path / "run" / "last").counters.skipped == 3


def test_too_many_in_a_row_stop_the_run_with_its_last_checkpoint(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 4, 5, 6})
    with pytest.raises(DivergenceError) as raised:
        train(tiny_run("train.most_skipped=3", "train.checkpoint_every=1"), tmp_path / "run")
    message = str(raised.value)
    assert "the loss was not finite at step 6 (learning rate" in message and "the 3. step in a row" in message
    assert "is the loss itself" in message
    assert f"{tmp_path / 'run' / 'last'} is the checkpoint before. Lower train.lr" in message
    assert read_state(tmp_path / "run" / "last").counters.step == 3


def test_an_unbroken_row_survives_a_resume(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {2, 3, 4})
    train(tiny_run("train.steps=3", "train.most_skipped=3"), tmp_path / "run")
    with pytest.raises(DivergenceError, match="at step 4"):
        train(tiny_run("train.steps=5", "train.most_skipped=3"), tmp_path / "run", resume=True)


def test_the_first_tensor_that_is_not_finite_is_named(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("model.layers=2", "train.most_skipped=1")
    with torch.no_grad():
        trainer.model.blocks[1].norm_in.bias.fill_(3e38)
    with pytest.raises(DivergenceError, match=r"first .* there is the output of blocks\.0\..* in blocks\.1\. "):
        trainer.take_step(0.1)
    with torch.no_grad():
        trainer.model.blocks[1].norm_in.bias[3] = float("nan")
    with pytest.raises(DivergenceError, match=r"is blocks\.1\.norm_in\.bias, 1 of whose 16 values are not finite"):
        trainer.take_step(0.1)


def test_a_gradient_is_named_where_the_forward_pass_is_finite(new_trainer: NewTrainer) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    assert first_not_finite(model, []).startswith("nothing")

    def loss() -> Tensor:
        hidden = model[0](torch.ones(1, 2))
        hidden.register_hook(lambda gradient: gradient * float("inf"))
        return model[1](hidden).sum()

    assert first_not_finite(model, [loss]) == "the gradient of 0.bias"


def test_what_the_loss_scaler_skips_is_no_error(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("train.precision=float16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    for _ in range(4):
        trainer.take_step(0.01)
    assert trainer.scaler.get_scale() < 2.0**40
    assert trainer.counters.skipped == 0


def test_the_loss_scaler_does_not_hide_gradients_that_are_never_finite(
    new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("train.precision=float16", "train.most_skipped=2")
    spoil(monkeypatch, {1}, "gradient")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(DivergenceError, match="the gradient was not finite"):
        for _ in range(6):
            trainer.take_step(0.01)
    assert trainer.scaler.get_scale() == 0.25
