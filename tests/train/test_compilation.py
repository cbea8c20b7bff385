"""`train.compile: auto`: a run compiles where that pays, says so, keeps its choice and needs no compiler."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wavelet_core.config import ConfigurationError
from wavelet_train import compilation
from wavelet_train.compilation import StepTimes, _first_and_later, _times_file, choose, compile_loss
from wavelet_train.trainer import Trainer, train

NewTrainer = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def no_real_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend="eager"):
        yield


def is_compiled(trainer: Trainer) -> bool:
    assert trainer.counters.compiled == (trainer.loss._compiled_call_impl is not None)
    return trainer.counters.compiled


def remember(trainer: Trainer, **times: float) -> None:
    file = _times_file(trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(times))


def measured(monkeypatch: pytest.MonkeyPatch, *times: tuple[float, float]) -> None:
    """Let first and later steps take these seconds: eager ones, and then compiled ones."""
    left = list(times)
    monkeypatch.setattr(compilation, "_first_and_later", lambda trainer, loss: left.pop(0))


def test_what_pays_is_what_saves_more_than_it_takes():
    assert StepTimes(1.0, 0.5, 100).pays(201) and not StepTimes(1.0, 0.5, 100).pays(200)
    assert not StepTimes(1.0, 1.1, 0).pays(10**9)


@pytest.mark.parametrize(("compiling", "compiled"), [(400.0, True), (600.0, False)])
def test_what_was_measured_before_decides(new_trainer: NewTrainer, monkeypatch, compiling: float, compiled: bool):
    measured(monkeypatch)
    trainer = new_trainer("train.steps=1000")
    remember(trainer, eager=1.0, compiled=0.5, compiling=compiling)
    said = choose(trainer, None)
    assert is_compiled(trainer) == compiled
    assert ("500 ms instead of 1000" in said) == compiled


@pytest.mark.parametrize(("later", "compiled"), [(0.5, True), (1.5, False)])
def test_a_long_run_finds_out_and_remembers(new_trainer: NewTrainer, monkeypatch, later: float, compiled: bool):
    measured(monkeypatch, (3.0, 1.0), (60.0, later))
    trainer = new_trainer("train.steps=1000")
    assert "measured now" in choose(trainer, None) and is_compiled(trainer) == compiled
    trainer.take_step(0.01)
    again = new_trainer("train.steps=100000")
    choose(again, None)
    assert is_compiled(again) == compiled
    other = new_trainer("train.steps=100000", "train.batch_size=3")
    assert _times_file(other) != _times_file(again) == _times_file(trainer)


def test_a_short_run_does_not_look_and_a_dry_one_does_not_try(new_trainer: NewTrainer, monkeypatch):
    measured(monkeypatch)
    assert "there are only 6" in choose(new_trainer(), None)
    measured(monkeypatch, (1.0, 0.01))
    assert "all of them take about 2 s" in choose(new_trainer("train.steps=200"), None)
    measured(monkeypatch, (1.0, 1.0))
    assert "will be tried" in choose(new_trainer("train.steps=100000"), None, may_try=False)


def test_damaged_times_are_measured_again(new_trainer: NewTrainer, monkeypatch):
    trainer = new_trainer("train.steps=1000")
    remember(trainer, eager=1.0)
    measured(monkeypatch, (0.1, 0.01))
    assert "not compiled" in choose(trainer, None)


def test_a_model_that_cannot_be_compiled_trains_all_the_same(new_trainer: NewTrainer, monkeypatch):
    trainer = new_trainer("train.steps=1000")

    def times(_: Any, loss: Any) -> tuple[float, float]:
        if loss._compiled_call_impl is not None:
            raise RuntimeError("no\nway")
        return 1.0, 1.0

    monkeypatch.setattr(compilation, "_first_and_later", times)
    assert choose(trainer, None) == "Steps are not compiled: RuntimeError: no" and not is_compiled(trainer)
    trainer.take_step(0.01)


def test_without_a_compiler_auto_does_without_and_true_is_refused(new_trainer: NewTrainer, monkeypatch):
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: "a C++ compiler")
    assert choose(new_trainer("train.steps=1000"), None) == "Steps are not compiled: that needs a C++ compiler"
    assert "round differently" in choose(new_trainer(), True)
    with pytest.raises(ConfigurationError, match=r"train\.compile: true needs a C\+\+ compiler"):
        new_trainer("train.compile=true")


def test_a_missing_compiler_is_noticed(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert "install one" in (compilation.missing_compiler(torch.device("cpu")) or "")


@pytest.mark.parametrize("compiled", [True, False])
def test_a_resumed_run_keeps_its_choice(tiny_run, tmp_path: Path, capsys, monkeypatch, compiled: bool):
    measured(monkeypatch)
    train(tiny_run(f"train.compile={str(compiled).lower()}"), tmp_path / "run")
    capsys.readouterr()
    train(tiny_run("train.steps=30"), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert f"Steps are {'' if compiled else 'not '}compiled, as the run began" in said
    state = json.loads((tmp_path / "run" / "last" / "trainer" / "state.json").read_text())
    assert state["counters"]["compiled"] == compiled


@pytest.mark.parametrize("carries", ["model.cross_window_state", "train.reset_at_documents"])
def test_measuring_leaves_everything_as_it_was(new_trainer: NewTrainer, carries: str):
    trainer = new_trainer("model.mixer={parametrization: spectral_norm}", f"{carries}=true")
    before = {
        name: tensor.clone() for name, tensor in {**trainer.state_tensors(), **trainer.model.state_dict()}.items()
    }
    _first_and_later(trainer, trainer.loss)
    after = {**trainer.state_tensors(), **trainer.model.state_dict()}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in trainer.parameters.values())


def test_what_the_compiler_makes_is_kept_in_the_cache_folder(new_trainer: NewTrainer, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    trainer = new_trainer()
    compile_loss(trainer.loss, trainer.run, trainer.device)
    assert Path(os.environ.pop("TORCHINDUCTOR_CACHE_DIR")) == tmp_path / "cache" / "inductor"
