"""`check_component` tells the author of a broken optimizer, schedule or data set what to change."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wavelet_core import ComponentConfig, ConfigurationError, registry
from wavelet_core.testing import check_component
from wavelet_train.trainer import Trainer, train


def message_of(broken: type, kind: str) -> str:
    with pytest.raises(AssertionError) as failure:
        check_component(broken, kind=kind)
    message = str(failure.value)
    assert message.startswith(f"{broken.__name__} ({kind} 'plain') ")
    return message


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else ""


class Config(ComponentConfig):
    kind: Literal["plain"] = "plain"


class Momentum(torch.optim.Optimizer):
    """A sound optimizer, and what the broken ones below have in common."""

    Config = Config

    def __init__(self, config: Config, named_parameters: Any, lr: float):
        super().__init__([parameter for _, parameter in named_parameters if parameter.requires_grad], {"lr": lr})

    def new_state(self, parameter: Tensor) -> dict[str, Any]:
        return {"momentum": torch.zeros_like(parameter), "calls": 0}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(self.new_state(parameter))
                    state["calls"] += 1
                    self.update(parameter, state, group)

    @torch.no_grad()
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state["momentum"].mul_(0.9).add_(parameter.grad)
        parameter.sub_(state["momentum"], alpha=group["lr"] / (1 + 0.1 * state["calls"]))


class Stateless(torch.optim.SGD):
    Config = Config

    def __init__(self, config: Config, named_parameters: Any, lr: float):
        super().__init__([parameter for _, parameter in named_parameters], lr)


class NoLearningRate(Momentum):
    def __init__(self, config: Config, named_parameters: Any):
        super().__init__(config, named_parameters, 0.1)


class NoOptimizer:
    Config = Config

    def __init__(self, config: Config, named_parameters: Any, lr: float):
        self.param_groups: list[Any] = []


class MatricesOnly(Momentum):
    def __init__(self, config: Config, named_parameters: Any, lr: float):
        super().__init__(config, [(name, each) for name, each in named_parameters if each.dim() > 1], lr)


class Copies(Momentum):
    def __init__(self, config: Config, named_parameters: Any, lr: float):
        super().__init__(config, [(name, each.detach().requires_grad_()) for name, each in named_parameters], lr)


class OwnRate(Momentum):
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        super().update(parameter, state, {"lr": 0.01})


class DecaysAll(Momentum):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1 - group["lr"])


class NeedsGradients(Momentum):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["lr"])


class NeedsClosure(Momentum):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        super().step()


class SkipsVectors(Momentum):
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if parameter.dim() != 1:
            super().update(parameter, state, group)


class Ascends(Momentum):
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        super().update(parameter, state, {"lr": -group["lr"]})


class Normalizes(Momentum):
    @torch.no_grad()
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        parameter.sub_(parameter.grad / parameter.grad.norm(), alpha=group["lr"])


class KeepsAList(Momentum):
    def new_state(self, parameter: Tensor) -> dict[str, Any]:
        return {**super().new_state(parameter), "history": []}


class StartsFromNothing(Momentum):
    def new_state(self, parameter: Tensor) -> dict[str, Any]:
        return {**super().new_state(parameter), "best_loss": float("nan")}


class KeepsItOnItself(Momentum):
    calls = 0

    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        self.calls += 1
        super().update(parameter, {**state, "calls": self.calls}, group)


class KeepsItInTheGroup(Momentum):
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        group["calls"] = group.get("calls", 0) + 1
        super().update(parameter, {**state, "calls": group["calls"]}, group)


class KeepsItUnderAnotherKey(Momentum):
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        shared: Any = self.state["shared"]  # type: ignore[index]
        shared["calls"] = shared.get("calls", 0) + 1
        super().update(parameter, {**state, "calls": shared["calls"]}, group)


class Lazy(Momentum):
    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        super().update(parameter, state, group)
        if state["calls"] == 2:
            state["slow"] = parameter.detach().clone()


class Halves(Momentum):
    def new_state(self, parameter: Tensor) -> dict[str, Any]:
        return {**super().new_state(parameter), "mask": torch.zeros(())}

    def update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        super().update(parameter, state, group)
        if state["calls"] == 2:
            state["mask"] = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize(
    ("broken", "found", "remedy"),
    [
        (NoLearningRate, "failed being made as NoLearningRate(config, named_parameters, lr)", "these three parameters"),
        (NoOptimizer, "is no torch.optim.Optimizer", "inherit from torch.optim.Optimizer"),
        (MatricesOnly, "has bias 0 times, scalar 0 times in its parameter groups", "exactly one group"),
        (Copies, "table 0 times", "exactly one group"),
        (OwnRate, "moves bias, matrix, scalar, stacked, table at the learning rate 0", "read group['lr'] in step()"),
        (DecaysAll, "moves a parameter that has no gradient", "whose grad is None"),
        (NeedsGradients, "failed in step(): TypeError", "pass over parameters without a gradient"),
        (NeedsClosure, "failed in step(): TypeError", "take no closure"),
        (SkipsVectors, "does not move bias", "every parameter that has a gradient"),
        (Ascends, "takes a quadratic's loss from 1.03 to 4.58 in 30 steps", "step against the gradient"),
        (Normalizes, "NaN or infinite with gradients of 0 times the usual", "divide by no zero"),
        (KeepsAList, "keeps a list, 'history', in the state of table", "keep tensors and numbers"),
        (StartsFromNothing, "keeps a NaN, 'best_loss', in the state of table", "taken for damaged"),
        (KeepsItOnItself, "goes on otherwise after a resume", "self.state[parameter]"),
        (KeepsItInTheGroup, "goes on otherwise after a resume", "self.state[parameter]"),
        (KeepsItUnderAnotherKey, "goes on otherwise after a resume", "self.state[parameter]"),
        (Lazy, "has other state after 3 steps than after its first: bias.slow", "at the parameter's first gradient"),
        (Halves, "has other state after 3 steps than after its first: bias.mask", "of its final shape and type"),
    ],
    ids=name_of,
)
def test_a_broken_optimizer_is_told_what_to_change(broken: type, found: str, remedy: str) -> None:
    message = message_of(broken, "optimizer")
    assert found in message and remedy in message, message


@pytest.mark.parametrize("sound", [Momentum, Stateless])
def test_sound_third_party_optimizers_pass(sound: type) -> None:
    check_component(sound, kind="optimizer")


@pytest.mark.parametrize(("optimizer", "same"), [(Momentum, True), (KeepsItOnItself, False)], ids=name_of)
def test_the_verdict_is_that_of_a_run_that_was_killed_and_resumed(
    optimizer: type, same: bool, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Trainer, lr: float) -> tuple[float, float]:
        if self.counters.step == 4:
            raise SystemExit("killed")
        return original(self, lr)

    original = Trainer.take_step
    registry.names("optimizer")  # so that plugins are loaded, and stay
    with patch.dict(registry._components):
        registry.register("optimizer", optimizer)
        run = tiny_run("train.optimizer=plain")
        train(run, tmp_path / "whole")
        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(Trainer, "take_step", killed)
            train(run, tmp_path / "parts")
        train(run, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "parts"))
    assert all(tensor.equal(parts[name]) for name, tensor in whole.items()) is same


class Inverse:
    """A sound schedule, and what the broken ones below have in common."""

    Config = Config

    def __init__(self, config: Config, peak: float, steps: int):
        self.peak, self.steps = peak, steps

    def __call__(self, step: int) -> Any:
        return self.peak / (1 + step)


class NoPeak(Inverse):
    def __init__(self, config: Config, steps: int):
        super().__init__(config, 1.0, steps)


class ByTheLastStep(Inverse):
    def __call__(self, step: int) -> Any:
        return self.peak * (1 - min(1, step / (self.steps - 1)))


class RunsBelowZero(Inverse):
    def __call__(self, step: int) -> Any:
        return self.peak * (1 - step / self.steps)


class BeginsAtZero(Inverse):
    def __call__(self, step: int) -> Any:
        return self.peak * min(step, 10) / 10


class GivesTensors(Inverse):
    def __call__(self, step: int) -> Any:
        return torch.tensor(self.peak)


class Overshoots(Inverse):
    def __call__(self, step: int) -> Any:
        return self.peak * (1.5 if step == 2 else 1.0)


class IgnoresThePeak(Inverse):
    def __call__(self, step: int) -> Any:
        return 0.01


class Counts(Inverse):
    calls = 0

    def __call__(self, step: int) -> Any:
        self.calls += 1
        return super().__call__(self.calls)


class CountsSchedules(Inverse):
    made = count()

    def __init__(self, config: Config, peak: float, steps: int):
        super().__init__(config, peak / (1 + next(self.made)), steps)


@pytest.mark.parametrize(
    ("broken", "found", "remedy"),
    [
        (NoPeak, "failed being made as NoPeak(config, 0.5, 1)", "(config, peak, steps)"),
        (ByTheLastStep, "failed being made as ByTheLastStep(config, 0.5, 1) and called", "a run of one step"),
        (RunsBelowZero, "gives the rate -0.5 at step 2 of 1", "from 0 to `peak`"),
        (BeginsAtZero, "gives the rate 0 in all of 1 steps", "of any length"),
        (GivesTensors, "gives a Tensor at step 0", "a Python float"),
        (Overshoots, "gives the rate 0.75 at step 2 of 1, above the peak 0.5", "never exceed"),
        (IgnoresThePeak, "same rates for half the peak", "scale the rates"),
        (Counts, "gives other rates when it is asked again", "count no calls"),
        (CountsSchedules, "gives other rates when it is made again", "a resumed run makes it anew"),
    ],
    ids=name_of,
)
def test_a_broken_schedule_is_told_what_to_change(broken: type, found: str, remedy: str) -> None:
    message = message_of(broken, "schedule")
    assert found in message and remedy in message, message


def test_a_sound_third_party_schedule_passes() -> None:
    check_component(Inverse, kind="schedule")


class Stones:
    """A sound data set without a test split, and what the broken ones below have in common."""

    Config = Config

    def __init__(self, config: Config):
        self.texts = {"train": [f"stone {number}\n" for number in range(20)], "validation": ["one more stone"]}

    def documents(self, split: str) -> Any:
        if split not in self.texts:
            raise ConfigurationError(f"data.dataset: there are no {split} stones; use another split")
        yield from self.texts[split]

    def fingerprint(self) -> Any:
        return "stones 1"


class NoConfig(Stones):
    def __init__(self) -> None:
        super().__init__(Config())


class Other(Stones):
    """Gives one more document each time."""

    def documents(self, split: str) -> Any:
        yield from super().documents(split)
        self.texts[split].append(f"another {split} stone")


class Shuffles(Stones):
    order = count()

    def documents(self, split: str) -> Any:
        texts = list(super().documents(split))
        turn = next(self.order) % len(texts)
        yield from texts[turn:] + texts[:turn]


class GivesBytes(Stones):
    def documents(self, split: str) -> Any:
        yield from (text.encode() for text in super().documents(split))


class GivesSurrogates(Stones):
    def documents(self, split: str) -> Any:
        yield from (text + "\udce9" for text in super().documents(split))


class EndsSilently(Stones):
    def documents(self, split: str) -> Any:
        yield from self.texts.get(split, [])


class RaisesKeyError(Stones):
    def documents(self, split: str) -> Any:
        yield from self.texts[split]


class RunsDry(Stones):
    """Gives an iterator of its own away, which can be read once."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.iterators = {split: iter(texts) for split, texts in self.texts.items()}

    def documents(self, split: str) -> Any:
        return self.iterators[split] if split in self.iterators else super().documents(split)


class NoTrain(Stones):
    def __init__(self, config: Config):
        self.texts = {"test": ["a stone"]}


class Leaks(Stones):
    def __init__(self, config: Config):
        super().__init__(config)
        self.texts["test"] = self.texts["train"][:3]


class SaysTooMuch(Stones):
    def size(self, split: str) -> int:
        return 10_000


class HashesTheTime(Stones):
    time = count()

    def fingerprint(self) -> Any:
        return f"stones {next(self.time)}"


class HashesBytes(Stones):
    def fingerprint(self) -> Any:
        return b"stones"


@pytest.mark.parametrize(
    ("broken", "found", "remedy"),
    [
        (NoConfig, "failed being made as NoConfig(config)", "this one parameter"),
        (Other, "of the train split, and more when it is asked again", "start anew"),
        (Shuffles, "gives other documents of the train split", "sort files"),
        (GivesBytes, "gives a bytes in the train split", "as a str"),
        (GivesSurrogates, "cannot be written as UTF-8: 'stone 0", "errors='replace'"),
        (EndsSilently, "has no document in the test split and does not say so", "raise ConfigurationError"),
        (RaisesKeyError, "failed reading the test split: KeyError", "raise ConfigurationError"),
        (RunsDry, "gives other documents of the train split", "start anew at each call"),
        (NoTrain, "has no train documents", "names some text"),
        (Leaks, "has every document of its test split in the train split too", "keep the splits apart"),
        (SaysTooMuch, "says that the train split has 10000 bytes, and gives 170", "roughly the bytes"),
        (HashesTheTime, "has another fingerprint when it is asked again", "not times"),
        (HashesBytes, "has the fingerprint b'stones'", "return a str"),
    ],
    ids=name_of,
)
def test_a_broken_data_set_is_told_what_to_change(broken: type, found: str, remedy: str) -> None:
    message = message_of(broken, "dataset")
    assert found in message and remedy in message, message


def test_a_sound_third_party_data_set_passes() -> None:
    check_component(Stones, kind="dataset")
