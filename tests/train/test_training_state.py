"""Optimizer state: saved by parameter name, and refused by name where it does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wavelet_core import CheckpointError
from wavelet_core.digests import write_digests
from wavelet_train.run_config import RunConfig
from wavelet_train.trainer import train
from wavelet_train.training_state import make_optimizer_state, optimizer_tensors, restore_optimizer

TinyRun = Callable[..., RunConfig]
Saved = dict[str, Tensor]
STATE, METRICS = Path("last/trainer/state.json"), "metrics.jsonl"


@pytest.fixture
def saved(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """The state file of a finished run of two steps with AdamW."""
    train(tiny_run("train.steps=2"), tmp_path / "run")
    return tmp_path / "run" / "last" / "trainer" / "state.safetensors"


@pytest.fixture
def finished(tiny_run: TinyRun, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, a copy of one that is trained once."""
    once = tmp_path_factory.getbasetemp() / "finished"
    if not once.exists():
        train(tiny_run("train.steps=2"), once)
    return Path(shutil.copytree(once, tmp_path / "finished"))


def refused(tiny_run: TinyRun, saved: Path, *overrides: str) -> str:
    """The message with which resuming is refused, where nothing else than what does not fit speaks against it."""
    write_digests(saved.parents[1])
    with pytest.raises(CheckpointError) as error:
        train(tiny_run("train.steps=4", *overrides), saved.parents[2], resume=True)
    return str(error.value)


def refused_at(tiny_run: TinyRun, directory: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        train(tiny_run("train.steps=2"), directory, resume=True)
    return str(error.value)


def change_state(directory: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads((directory / STATE).read_text())
    change(content)
    (directory / STATE).write_text(json.dumps(content))
    write_digests(directory / "last")


@pytest.mark.parametrize(
    ("optimizer", "names"), [("adamw", {"step", "exp_avg", "exp_avg_sq"}), ("adagrad", {"step", "sum"})]
)
def test_state_is_saved_by_parameter_name(optimizer: str, names: set[str], tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run("train.steps=2", f"train.optimizer={optimizer}"), tmp_path / "run")
    weights = load_file(tmp_path / "run" / "last" / "model.safetensors")
    tensors = load_file(tmp_path / "run" / "last" / "trainer" / "state.safetensors")
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    if optimizer == "adamw":  # which makes its state with the first gradient, and the first block has none before it
        assert weights.pop("blocks.0.bypass.cross_layer.weight").shape
    assert found.keys() == {f"optimizer.{weight}.{name}" for weight in weights for name in names}
    for name, tensor in found.items():
        weight, _, key = name.removeprefix("optimizer.").rpartition(".")
        assert tensor.shape == (() if key == "step" else weights[weight].shape)


def without(start: str) -> Callable[[Saved], Saved]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("optimizer.head.weight.exp_avg_sq"), "missing optimizer.head.weight.exp_avg_sq [256, 16]"),
        (without("optimizer."), "missing optimizer.embedding.weight.step []"),
        (without("random.cpu"), "missing random.cpu"),
        (without("windows."), "missing windows.generator"),
        (
            lambda tensors: {**tensors, "optimizer.head.weight.exp_avg": torch.zeros(3, 16)},
            "optimizer.head.weight.exp_avg has shape [3, 16], but the configuration makes it [256, 16]",
        ),
        (
            lambda tensors: {**tensors, "optimizer.head.weight.step": torch.zeros(2)},
            "optimizer.head.weight.step has shape [2], but the configuration makes it []",
        ),
        (
            lambda tensors: {**tensors, "optimizer.norm.bias.exp_avg": torch.zeros(16, dtype=torch.float64)},
            "optimizer.norm.bias.exp_avg is torch.float64, but torch.float32 is needed",
        ),
        (
            lambda tensors: {**tensors, "optimizer.extra.weight.exp_avg": torch.zeros(1)},
            "unexpected optimizer.extra.weight.exp_avg [1]",
        ),
    ],
)
def test_state_that_does_not_fit_is_refused_by_name(
    change: Callable[[Saved], Saved], message: str, tiny_run: TinyRun, saved: Path
) -> None:
    save_file(change(load_file(saved)), saved)
    found = refused(tiny_run, saved)
    assert str(saved) in found and message in found


def test_state_of_another_optimizer_is_refused_by_name(tiny_run: TinyRun, saved: Path) -> None:
    pretend(saved, "train", "optimizer", "adagrad")
    assert "missing optimizer.embedding.weight.sum " in refused(tiny_run, saved, "train.optimizer=adagrad")


def test_state_of_another_kind_of_windows_is_refused_by_name(tiny_run: TinyRun, saved: Path) -> None:
    pretend(saved, "model", "cross_window_state", True)
    message = refused(tiny_run, saved, "model.cross_window_state=true")
    assert "missing windows.window []" in message and "unexpected windows.generator" in message
    assert "missing carried.window.last_mean [2, 1, 16]" in message


def pretend(saved: Path, section: str, field: str, value: Any) -> None:
    """Change what a checkpoint's config.json says of its run."""
    file = saved.parents[1] / "config.json"
    content = json.loads(file.read_text())
    content[section][field] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["random.cpu", "windows.generator"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state[:-1], "has shape"),
        (lambda state: state.to(torch.int32), "is torch.int32, but the configuration makes it torch.uint8"),
        (lambda state: torch.full_like(state, 255), "is damaged"),
    ],
)
def test_states_of_generators_that_are_none_are_refused(
    name: str, change: Callable[[Tensor], Tensor], message: str, tiny_run: TinyRun, saved: Path
) -> None:
    tensors = load_file(saved)
    save_file({**tensors, name: change(tensors[name])}, saved)
    found = refused(tiny_run, saved)
    assert str(saved) in found and message in found


@pytest.mark.parametrize("window", [-1, 10**9])
def test_place_that_the_text_does_not_have_is_refused(window: int, tiny_run: TinyRun, tmp_path: Path) -> None:
    saved = tmp_path / "run" / "last" / "trainer" / "state.safetensors"
    train(tiny_run("train.steps=2", "model.cross_window_state=true"), tmp_path / "run")
    save_file({**load_file(saved), "windows.window": torch.tensor(window)}, saved)
    assert f"window {window} is none of the" in refused(tiny_run, saved, "model.cross_window_state=true")


def test_state_that_is_not_a_number_is_refused_by_name(tiny_run: TinyRun, saved: Path) -> None:
    tensors = load_file(saved)
    tensors["optimizer.norm.bias.exp_avg"][3] = float("nan")
    save_file(tensors, saved)
    message = refused(tiny_run, saved)
    assert str(saved) in message and "optimizer.norm.bias.exp_avg" in message and "not a number" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("step", value) for value in (-1, "2", 2.5, True, None, 10**30, [2])),
        *(("steps", value) for value in (0, 1, "2", False)),
        *(("tokens", value) for value in (-1, "64")),
        *(("validated_step", value) for value in (-1, 3, None)),
        *(("best_nats", value) for value in (float("nan"), float("inf"), -1.0, "5", None, True)),
        *(("best_step", value) for value in (0, 3, None, "2")),
        *(("loss_sum", value) for value in (float("nan"), "0", None)),
        *(("loss_steps", value) for value in (-1, 3, 0.5)),
        *(("metrics_size", value) for value in (-1, 10**9, "7", None)),
        ("surplus", 1),
    ],
)
def test_counters_of_another_type_or_range_are_refused_by_name(
    field: str, value: Any, tmp_path: Path, tiny_run: TinyRun, finished: Path
) -> None:
    change_state(finished, lambda content: content["counters"].update({field: value}))
    before = (finished / STATE).read_bytes(), (finished / METRICS).read_bytes()
    message = refused_at(tiny_run, finished)
    assert str(finished / STATE) in message and field in message
    assert "damaged" in message or "put" in message
    assert before == ((finished / STATE).read_bytes(), (finished / METRICS).read_bytes())


@pytest.mark.parametrize("field", ["step", "best_step", "metrics_size"])
def test_missing_counter_is_refused_by_name(field: str, tiny_run: TinyRun, finished: Path) -> None:
    change_state(finished, lambda content: content["counters"].pop(field))
    message = refused_at(tiny_run, finished)
    assert f"counters.{field}" in message and "damaged" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(loss_scaler={"scale": -1.0, "growth_tracker": 0}), "loss_scaler.scale"),
        (lambda content: content.update(loss_scaler={"scale": 2.0}), "loss_scaler.growth_tracker"),
        (lambda content: content.update(loss_scaler="65536"), "loss_scaler"),
        (lambda content: content.pop("data"), "data"),
        (lambda content: content.update(counters=7), "counters"),
        (lambda content: content.update(surplus=7), "surplus"),
    ],
)
def test_other_state_that_is_damaged_is_refused_by_name(
    change: Callable[[Any], Any], message: str, tiny_run: TinyRun, finished: Path
) -> None:
    change_state(finished, change)
    found = refused_at(tiny_run, finished)
    assert message in found and "damaged" in found


@pytest.mark.parametrize("text", ["[1]", "", "{", "[" * 100_000, "\xff"])
def test_state_that_is_no_object_is_refused(text: str, tiny_run: TinyRun, finished: Path) -> None:
    (finished / STATE).write_text(text, "latin-1")
    write_digests(finished / "last")
    message = refused_at(tiny_run, finished)
    assert str(finished / STATE) in message and "damaged" in message and len(message) < 500


def test_run_goes_on_without_metrics_that_are_gone(tiny_run: TinyRun, finished: Path) -> None:
    (finished / METRICS).unlink()
    assert train(tiny_run("train.steps=4"), finished, resume=True).step == 4


@pytest.mark.parametrize("version", [None, 1, 2, 4])
def test_run_of_another_format_is_refused_with_a_remedy(version: Any, tiny_run: TinyRun, saved: Path) -> None:
    """The first format had no version, and numbered the parameters."""
    file = saved.with_name("state.json")
    content = json.loads(file.read_text())
    assert content.pop("format_version") == 3
    file.write_text(json.dumps(content | ({} if version is None else {"format_version": version})))
    message = refused(tiny_run, saved)
    assert str(file) in message and f"not {version or 1}" in message and "--overwrite" in message


class Counting(torch.optim.SGD):
    """Keeps numbers in its state, and changes parameters whatever its learning rate and their gradients are."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["calls"] = state.get("calls", 0) + 1
                    state["share"] = state.get("share", 1.0) / 2
                    parameter.data.add_(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, 0.1, weight_decay=0.5),
        lambda parameters: torch.optim.Adagrad(parameters, 0.1, weight_decay=0.5),
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, 0.1),
        lambda parameters: torch.optim.Adafactor(parameters, 0.1),
        Counting,
    ],
    ids=["adamw", "adagrad", "momentum", "stateless", "adafactor", "numbers"],
)
def test_any_optimizer_goes_on_where_it_was(make: Any) -> None:
    """Also one of whose parameters one is frozen and one has had no gradient yet."""

    def new() -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.ModuleDict({name: nn.Linear(3, 2) for name in ("used", "unused", "frozen")})
        model["frozen"].requires_grad_(False)
        parameters = dict(model.named_parameters())
        return parameters, make([parameter for parameter in parameters.values() if parameter.requires_grad])

    def steps(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, which: str, count: int) -> None:
        for number in range(count):
            for name, parameter in parameters.items():
                if name.startswith(which):
                    parameter.grad = torch.full_like(parameter, 0.1 + number)
            optimizer.step()
            optimizer.zero_grad()

    parameters, optimizer = new()
    steps(parameters, optimizer, "used", 3)
    tensors = optimizer_tensors(optimizer, parameters)
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    others, other = new()
    before = {name: parameter.detach().clone() for name, parameter in others.items()}
    make_optimizer_state(other, others, saved, step=3)
    assert all(torch.equal(parameter, before[name]) for name, parameter in others.items())
    assert all(parameter.grad is None for parameter in others.values())
    restore_optimizer(other, others, saved)
    restored = optimizer_tensors(other, others)
    assert restored.keys() == saved.keys() and all(torch.equal(restored[name], saved[name]) for name in saved)
    for name, parameter in others.items():
        parameter.data.copy_(values[name])
    for run in ((parameters, optimizer), (others, other)):
        steps(*run, "used", 2)
        steps(*run, "unused", 2)
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in others.items())
    kept, again = optimizer_tensors(optimizer, parameters), optimizer_tensors(other, others)
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)
