"""Runs repeat, stop and go on without a difference."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wavelet_core import CheckpointError, ConfigurationError
from wavelet_train import trainer
from wavelet_train.run_config import RunConfig
from wavelet_train.trainer import Trainer, train
from wavelet_train.training_state import read_state

TinyRun = Callable[..., RunConfig]
Metrics = Callable[..., list[dict[str, Any]]]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors") | load_file(directory / "trainer" / "state.safetensors")


def counters(directory: Path) -> dict[str, Any]:
    return {name: value for name, value in vars(read_state(directory).counters).items() if name != "metrics_size"}


def assert_same_run(one: Path, other: Path, read_metrics: Metrics) -> None:
    """Metrics, weights, optimizer state, generators and counters agree bit for bit."""
    assert read_metrics(one) == read_metrics(other)
    assert counters(one / "last") == counters(other / "last")
    first, second = tensors(one / "last"), tensors(other / "last")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Send this process a signal while it computes the step after `step`."""
    original = Trainer.take_step

    def interrupted(self: Trainer, lr: float) -> tuple[float, float]:
        if self.counters.step == step:
            os.kill(os.getpid(), number)
        return original(self, lr)

    monkeypatch.setattr(Trainer, "take_step", interrupted)


def test_two_runs_are_identical(tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics) -> None:
    run = tiny_run("model.embedding_dropout=0.1", "model.layers=2", "model.stochastic_depth=0.5")
    for name in ("one", "two"):
        random.seed(name)
        torch.manual_seed(len(name) * 7)
        before = random.getstate()
        train(run, tmp_path / name)
        assert random.getstate() == before, "Python's own generator decides nothing"
    assert_same_run(tmp_path / "one", tmp_path / "two", read_metrics)


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        (2, ["model.embedding_dropout=0.2", "train.log_every=4"]),
        (3, ["model.layers=2", "model.stochastic_depth=0.5", "train.optimizer=adagrad", "train.accumulation=2"]),
        (1, ["model.layers=2", "model.stochastic_depth=0.999", "train.precision=bfloat16"]),
        (4, ["model.cross_window_state=true", "train.checkpoint_every=1"]),
        (1, ["train.precision=float16", "train.schedule.warmup=0.5"]),
        (2, ["train.order=shuffled", "train.batch_size=39", "train.background_saves=true", "train.checkpoint_every=1"]),
        (3, ["train.order=contiguous", "train.batch_size=20", "train.accumulation=2", "train.background_saves=true"]),
        (4, ["train.order=contiguous", "train.reset_at_documents=true", "train.keep_checkpoints=2"]),
        (2, ["train.optimizer=muon", "train.weight_average.decay=0.9", "train.schedule=warmup_stable_decay"]),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(
    step: int,
    overrides: list[str],
    tiny_run: TinyRun,
    tmp_path: Path,
    read_metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiny_run(*overrides)
    train(run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        result = train(run, tmp_path / "parts")
    assert (result.step, result.stopped_by, result.report) == (step + 1, "SIGINT", None)
    assert train(run, tmp_path / "parts", resume=True).step == 6
    assert_same_run(tmp_path / "whole", tmp_path / "parts", read_metrics)


@pytest.mark.parametrize("seed", range(3))
def test_a_signal_at_any_moment_changes_nothing(
    seed: int, tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of accumulation, of an epoch, and of a validation; and again after each resume."""
    chance = random.Random(seed)
    order = chance.choice(["random", "shuffled", "contiguous"])
    background = f"train.background_saves={chance.choice(['true', 'false'])}"
    run = tiny_run(f"train.order={order}", background, "train.accumulation=3", "model.embedding_dropout=0.1")
    train(run, tmp_path / "whole")
    left = 0

    def signal_now_and_then(original: Callable[..., Any]) -> Callable[..., Any]:
        def signalling(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), chance.choice([signal.SIGINT, signal.SIGTERM]))
            return original(*arguments)

        return signalling

    with monkeypatch.context() as patch:
        for name in ("loss_of", "_scored"):
            patch.setattr(Trainer, name, signal_now_and_then(getattr(Trainer, name)))
        for stops in range(3):
            left = chance.randrange(1, 9)
            train(run, tmp_path / "parts", resume=stops > 0)
        left = 0
        assert train(run, tmp_path / "parts", resume=True).stopped_by is None
    assert_same_run(tmp_path / "whole", tmp_path / "parts", read_metrics)


def test_run_killed_after_its_last_checkpoint_resumes_exactly(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    train(run, tmp_path / "whole")

    def killed(self: Trainer, lr: float) -> tuple[float, float]:
        if self.counters.step == 5:
            raise SystemExit("killed")
        return original(self, lr)

    original = Trainer.take_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", killed)
        with pytest.raises(SystemExit):
            train(run, tmp_path / "killed")
    assert counters(tmp_path / "killed" / "last")["step"] == 3
    assert read_metrics(tmp_path / "killed", "train")[-1]["step"] == 5
    train(run, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed", read_metrics)


KILLED_BETWEEN_TWO_RENAMES = """
import os, signal, sys
from pathlib import Path
from wavelet_core import atomic_files
from wavelet_train.run_config import load_run_config
from wavelet_train.trainer import train

def replace_or_die(source, target):
    if Path(target).name == "last" and (Path(source).parent / "old").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

replace = os.replace
os.replace = replace_or_die
atomic_files._exchange = lambda first, second: False
train(load_run_config("tiny.yaml"), sys.argv[1])
"""


def test_kill_while_a_checkpoint_is_replaced_loses_nothing(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics
) -> None:
    """On a system that cannot exchange two directories in one step."""
    run, directory = tiny_run(), tmp_path / "killed"
    train(run, tmp_path / "whole")
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_TWO_RENAMES, directory], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not (directory / "last").exists()
    train(run, directory, resume=True)
    assert not list(directory.glob(".*"))
    assert_same_run(tmp_path / "whole", directory, read_metrics)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(
    number: signal.Signals,
    tiny_run: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(number)
    stop_after(1, monkeypatch, number)
    result = train(tiny_run(), tmp_path / "run")
    assert result.stopped_by == number.name
    assert counters(tmp_path / "run" / "last")["step"] == 2
    assert f"wavelet train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_second_signal_is_not_held_back(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: Trainer, lr: float) -> tuple[float, float]:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)  # to this thread at once: two that are pending together are one
        raise AssertionError("the second signal came to nothing")

    monkeypatch.setattr(Trainer, "take_step", twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background does not have
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tiny_run(), tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)


def test_stop_during_validation_validates_after_resuming(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    train(run, tmp_path / "whole")
    original = trainer.score_text

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "score_text", interrupted)
        assert train(run, tmp_path / "parts").step == 3
    assert read_metrics(tmp_path / "parts", "validation") == []
    train(run, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", read_metrics)


def test_stop_during_the_report_reports_after_resuming(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    original = trainer.make_report

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_report", interrupted)
        assert train(run, tmp_path / "run").stopped_by == "SIGTERM"
    assert train(run, tmp_path / "run", resume=True).report is not None
    assert len(read_metrics(tmp_path / "run", "report")) == 1


def test_existing_run_is_replaced_only_when_asked(
    tiny_run: TinyRun, tmp_path: Path, read_metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("train.steps=3")
    train(run, tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(run, tmp_path / "run")
    train(tiny_run("train.steps=2"), tmp_path / "run", overwrite=True)
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [1, 2]
    assert (tmp_path / "run" / "best").is_dir()
    with monkeypatch.context() as patch:
        stop_after(0, patch)
        train(run, tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "best").exists()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        train(run, tmp_path / "file")


def test_resuming_needs_a_whole_run_of_the_same_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    run, directory = tiny_run("train.steps=2"), tmp_path / "run"
    with pytest.raises(CheckpointError, match="holds no run that can be resumed"):
        train(run, directory, resume=True)
    train(run, directory)
    with pytest.raises(ConfigurationError, match=r"model\.width is 32, but the run was trained with 16"):
        train(tiny_run("model.width=32"), directory, resume=True)
    state = directory / "last" / "trainer" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        train(run, directory, resume=True)
    (directory / "last" / "trainer" / "state.json").write_text("{")
    with pytest.raises(CheckpointError):
        train(run, directory, resume=True)


def test_longer_run_resumes_a_finished_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run(), tmp_path / "run")
    assert train(tiny_run("train.steps=9"), tmp_path / "run", resume=True).step == 9
