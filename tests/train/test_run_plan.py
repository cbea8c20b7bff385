"""What a run says before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wavelet_core import ComponentConfig, hookimpl, registry
from wavelet_train.quantities import byte_size, duration
from wavelet_train.run_config import RunConfig
from wavelet_train.run_directory import RunDirectory
from wavelet_train.run_plan import RunPlan, expected_seconds, make_plan
from wavelet_train.trainer import Trainer, plan_training, train

TinyRun = Callable[..., RunConfig]
NewTrainer = Callable[..., Trainer]


@pytest.mark.parametrize("overrides", [(), ("train.optimizer=adagrad",), ("model.cross_window_state=true",)])
def test_plan_is_what_then_happens(overrides: tuple[str, ...], tiny_run: TinyRun, tmp_path: Path) -> None:
    plan = plan_training(tiny_run(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = train(tiny_run(*overrides), tmp_path / "run")
    assert (plan.step, plan.steps, plan.tokens_per_step) == (0, result.steps, 32)
    assert plan.train_bytes == (tmp_path / "train.txt").stat().st_size
    sizes = {path.parent.name: path.stat().st_size for path in (tmp_path / "run" / "last").rglob("*.safetensors")}
    # Headers and alignment come on top of the tensors.
    assert 0 <= sizes["last"] - plan.best_bytes < 10_000
    assert plan.last_bytes is not None and 0 <= sum(sizes.values()) - plan.last_bytes < 30_000


def test_plan_changes_nothing_of_the_run(new_trainer: NewTrainer) -> None:
    plain, planned = new_trainer(), new_trainer()
    torch.manual_seed(3)
    first = plain.take_step(0.01)
    torch.manual_seed(3)
    assert make_plan(planned).seconds is None
    assert planned.take_step(0.01) == first


class NeedsNumbers(torch.optim.SGD):
    """Looks at what tensors hold."""

    class Config(ComponentConfig):
        kind: str = "needs_numbers"

    def __init__(self, config: Config, named_parameters: Any, lr: float):
        super().__init__([parameter for _, parameter in named_parameters], lr=lr)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            assert all(parameter.grad is None or parameter.grad.norm().item() >= 0 for parameter in group["params"])

    @staticmethod
    @hookimpl
    def register_components(register: Callable[[str, type], None]) -> None:
        register("optimizer", NeedsNumbers)


def test_optimizer_that_cannot_tell_its_size_is_no_obstacle(new_trainer: NewTrainer) -> None:
    assert registry.add_plugin(NeedsNumbers, "needs_numbers").error is None
    plan = make_plan(new_trainer("train.optimizer=needs_numbers"))
    assert plan.last_bytes is None and "and the optimizer's state" in str(plan)


def test_full_disk_is_warned_of(
    new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(new_trainer())
    assert plan.disk_needed == plan.best_bytes + 2 * (plan.last_bytes or 0)
    keeping = make_plan(new_trainer("train.keep_checkpoints=2", "train.keep_every=2"))
    assert keeping.disk_needed == plan.disk_needed + (2 + 3) * (plan.last_bytes or 0)
    plan.warn()
    assert "Warning" not in capsys.readouterr().err
    monkeypatch.setattr(RunDirectory, "free_bytes", 2048)
    make_plan(new_trainer()).warn()
    assert "has only 2.0 KiB free: make room" in capsys.readouterr().err


def test_what_is_there_already_is_not_needed_again(tiny_run: TinyRun, tmp_path: Path) -> None:
    new: RunPlan = plan_training(tiny_run(), tmp_path / "run")
    train(tiny_run(), tmp_path / "run")
    again = plan_training(tiny_run(), tmp_path / "run", overwrite=True)
    assert new.last_bytes is not None and new.disk_needed is not None and again.disk_needed is not None
    assert again.disk_needed <= new.disk_needed - new.best_bytes - new.last_bytes
    assert str(replace(again, seconds=321.4)).endswith("time       about 5 min 21 s, validations and report included")


def test_time_is_that_of_steps_validations_and_report(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes on by a second whenever a step is made or a batch is scored."""
    now = [0.0]

    def tick(*arguments: Any) -> tuple[float, float]:
        now[0] += 1
        return 0.0, 0.0

    def evaluate(*arguments: Any, on_batch: Callable[[int], None], **keywords: Any) -> None:
        for scored in (32, 32, 23):
            tick()
            on_batch(scored)

    monkeypatch.setattr("wavelet_train.run_plan.time.monotonic", lambda: now[0])
    monkeypatch.setattr("wavelet_train.run_plan.evaluate", evaluate)
    monkeypatch.setattr(Trainer, "take_step", tick)
    trainer = new_trainer("train.steps=7")
    # 7 steps; validations after 3, 6 and 7; 87 tokens each, and twice as many in the report's half windows.
    assert expected_seconds(trainer) == pytest.approx(7 + (3 + 2) * 87 * 2 / 55)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (321, "5 min 21 s"), (3 * 3600 + 300, "3 h 5 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5120.0 GiB")])
def test_sizes(size: int, text: str) -> None:
    assert byte_size(size) == text
