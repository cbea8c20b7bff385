"""Loggers get what metrics.jsonl gets, a resumed run is one run to them, and none of them stops a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wavelet_core import ConfigurationError
from wavelet_core.testing import check_component
from wavelet_train.logger import LoggedRun, scalars
from wavelet_train.run_records import RunRecords
from wavelet_train.tensorboard import TensorBoard
from wavelet_train.trainer import train
from wavelet_train.weights_and_biases import WeightsAndBiases

Events = Callable[[Path], dict[str, list[tuple[int, float]]]]


@pytest.fixture
def events() -> Events:
    """Read (step, value) by name from the event files of a run, as TensorBoard shows them."""
    pytest.importorskip("tensorboard", reason="needs the extra wavelet-train[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(run: Path) -> dict[str, list[tuple[int, float]]]:
        accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
        accumulator.Reload()
        return {
            name: [(event.step, event.value) for event in accumulator.Scalars(name)]
            for name in accumulator.Tags()["scalars"]
        }

    return read


class FakeWandb(SimpleNamespace):
    """What is used of the package wandb; `runs` is what it was told."""

    def __init__(self) -> None:
        usage_error = type("UsageError", (Exception,), {})
        super().__init__(runs=[], errors=SimpleNamespace(UsageError=usage_error), Settings=lambda **given: given)

    def init(self, **given: Any) -> Any:
        if given["entity"] == "nobody":
            raise self.errors.UsageError("No API key configured")
        run = SimpleNamespace(given=given, logged=[], finished=False)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return fake


def test_numbers_have_names_with_their_event_and_place():
    record = {"event": "train", "step": 3, "loss": 1.5, "norms": {"mlp": [1, None]}, "name": "text", "none": None}
    assert list(scalars(record)) == [("train/loss", 1.5), ("train/norms/mlp/0", 1.0)]


def test_tensorboard_shows_every_number_of_the_metrics(events, tiny_run, tmp_path, read_metrics):
    train(tiny_run("train.loggers=[tensorboard]"), tmp_path / "run")
    shown = events(tmp_path / "run")
    times = ("train/tokens_per_second", "validation/seconds")
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in read_metrics(tmp_path / "run"):
        for name, value in scalars(record):
            expected.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    assert {name: values for name, values in shown.items() if name not in times} == expected
    assert {"train/loss", "validation/bits_per_byte", "report/validation/bits_per_byte", *times} <= shown.keys()


def write(logger: Any, run: Path, steps_done: int, steps: range) -> None:
    logger.start(LoggedRun(run, {"train": {"lr": 0.1}}, steps_done))
    for step in steps:
        logger.write({"event": "train", "step": step, "loss": float(step)})


def test_tensorboard_shows_a_killed_and_resumed_run_once(events, tmp_path):
    write(TensorBoard(TensorBoard.Config()), tmp_path, 0, range(1, 6))  # killed: not closed
    write(TensorBoard(TensorBoard.Config()), tmp_path, 3, range(4, 8))
    assert events(tmp_path) == {"train/loss": [(step, float(step)) for step in range(1, 8)]}


def test_tensorboard_forgets_a_run_that_is_overwritten(events, tmp_path):
    write(TensorBoard(TensorBoard.Config()), tmp_path, 0, range(1, 6))
    write(TensorBoard(TensorBoard.Config()), tmp_path, 0, range(1, 3))
    assert events(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0)]}


def test_wandb_is_told_the_run_and_its_numbers(wandb, tiny_run, tmp_path, read_metrics):
    options = "{kind: wandb, project: stones, entity: us, group: g, tags: [t], mode: offline}"
    run = tiny_run(f"train.loggers=[{options}]", "train.steps=3")
    train(run, tmp_path / "first")
    [told] = wandb.runs
    assert told.finished
    assert told.given.items() >= {"project": "stones", "entity": "us", "group": "g", "mode": "offline"}.items()
    assert (told.given["name"], told.given["tags"], told.given["dir"]) == ("first", ["t"], str(tmp_path / "first"))
    assert told.given["config"]["train"]["steps"] == 3
    assert [step for step, _ in told.logged] == [record["step"] for record in read_metrics(tmp_path / "first")]
    assert {"train/loss", "train/lr", "train/gradient_norm", "train/gradient_norms/mixer/0"} <= told.logged[0][1].keys()


def test_wandb_goes_on_with_the_same_run_and_starts_another_one_anew(wandb, tmp_path):
    for steps_done in (0, 3, 0):
        write(WeightsAndBiases(WeightsAndBiases.Config()), tmp_path, steps_done, range(steps_done + 1, 4))
    first, resumed, anew = (run.given["id"] for run in wandb.runs)
    assert first == resumed != anew
    assert all(run.given["resume"] == "allow" for run in wandb.runs)


def test_the_logger_of_wandb_keeps_its_contract(wandb):
    check_component(WeightsAndBiases, kind="logger")


class Broken:
    """A logger that fails where it is told to."""

    def __init__(self, place: str, error: type[Exception] = OSError):
        self.place, self.error, self.calls = place, error, []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.place:
            raise self.error("no space left\non the dashboard")

    def start(self, run: LoggedRun) -> None:
        self._call("start")

    def write(self, record: Mapping[str, Any]) -> None:
        self._call("write")

    def close(self) -> None:
        self._call("close")


@pytest.mark.parametrize("place", ["start", "write", "close"])
def test_a_failing_logger_is_named_once_and_stops_neither_run_nor_other_loggers(
    place, new_trainer, tmp_path, read_metrics, capsys
):
    trainer, broken, whole = new_trainer(), Broken(place), Broken("nowhere")
    trainer.records = RunRecords([broken, whole])
    with trainer.records:
        trainer.run_to_the_end()
    assert capsys.readouterr().err.count("Warning: the logger Broken failed (OSError: no space left on the dash") == 1
    assert broken.calls.count(place) == 1 and broken.calls[-1] == place
    assert whole.calls == ["start", *["write"] * len(read_metrics(tmp_path / "run")), "close"]
    assert (tmp_path / "run" / "last").exists()


def test_a_logger_that_cannot_work_as_configured_is_refused_before_the_first_step(wandb, tiny_run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"train\.loggers: wandb: No API key configured"):
        train(tiny_run("train.loggers=[{kind: wandb, entity: nobody}]"), tmp_path / "run")
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_logger_without_its_package_is_refused_with_the_extra(kind, module, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=rf"train\.loggers: {kind} needs .*wavelet-train\[{kind}\]"):
        train(tiny_run(f"train.loggers=[{kind}]"), tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*/"))


def test_a_contract_failure_says_what_to_change():
    class Greedy(Broken):
        Config = WeightsAndBiases.Config

        def __init__(self, config: Any):
            super().__init__("nowhere")

        def write(self, record: Any) -> None:
            record.pop("event")

    with pytest.raises(AssertionError, match="changes the record that it is given"):
        check_component(Greedy, WeightsAndBiases.Config(), kind="logger")
