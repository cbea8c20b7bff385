"""The contract of an optimizer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.tensor_files import load_tensors, save_tensors
from wavelet_core.testing.subject import Subject
from wavelet_train.training_state import make_optimizer_state, optimizer_tensors, restore_optimizer

# Every shape that a model has: tables, matrices, one matrix a scale, gains, scalars.
SHAPES = {"table": (7, 4), "matrix": (4, 6), "stacked": (3, 4, 5), "bias": (6,), "scalar": (), "late": (4, 2)}
LR = 0.01
STEPS = 30
SAVED_AT, RESUMED = 3, 5


class Run:
    """Parameters that are trained towards 1, and their optimizer, as the trainer makes and calls it."""

    def __init__(self, subject: Subject):
        torch.manual_seed(0)
        self.parameters = {name: nn.Parameter(0.1 * torch.randn(shape)) for name, shape in SHAPES.items()}
        self.parameters["frozen"] = nn.Parameter(torch.randn(4, 3), requires_grad=False)
        with subject.expecting(
            f"being made as {subject.component.__name__}(config, named_parameters, lr)",
            "give __init__ these three parameters; the second is a list of (name, parameter), frozen ones among them",
        ):
            self.optimizer = subject.component(subject.config, list(self.parameters.items()), LR)

    def values(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def loss(self) -> float:
        trained = (value for name, value in self.values().items() if name not in ("late", "frozen"))
        return float(torch.stack([(value - 1).square().mean() for value in trained]).mean())

    def step(self, subject: Subject, lr: float = LR, late: bool = True, scale: float = 1.0) -> None:
        """One step of the trainer; without `late` one parameter has no gradient, as in a block that was skipped."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in self.parameters.items():
            if parameter.requires_grad and (late or name != "late"):
                parameter.grad = scale * (parameter.detach() - 1)
        remedy = "take no closure, pass over parameters without a gradient, and work for tensors of 0 to 3 dimensions"
        with subject.expecting("in step()", remedy):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _check_groups(subject: Subject) -> None:
    run = Run(subject)
    if not isinstance(run.optimizer, torch.optim.Optimizer):
        subject.fail("is no torch.optim.Optimizer", "let the class inherit from torch.optim.Optimizer")
    names = {parameter: name for name, parameter in run.parameters.items()}
    grouped = [names.get(each, "a foreign tensor") for group in run.optimizer.param_groups for each in group["params"]]
    if wrong := [name for name in [*SHAPES, "a foreign tensor"] if grouped.count(name) != (name in SHAPES)]:
        subject.fail(
            f"has {', '.join(f'{name} {grouped.count(name)} times' for name in wrong)} in its parameter groups",
            "put every parameter that requires a gradient into exactly one group",
        )


def _check_steps(subject: Subject) -> None:
    run = Run(subject)
    before, loss = run.values(), run.loss()
    run.step(subject, lr=0.0, late=False)
    if moved := _changed(before, run):
        subject.fail(
            f"moves {', '.join(sorted(moved))} at the learning rate 0",
            "read group['lr'] in step(): the trainer writes the schedule's rate into it before each step",
        )
    run = Run(subject)
    run.step(subject, late=False)
    moved = _changed(before, run)
    if moved & {"late", "frozen"}:
        subject.fail("moves a parameter that has no gradient", "pass over parameters whose grad is None")
    if still := SHAPES.keys() - moved - {"late"}:
        subject.fail(f"does not move {', '.join(sorted(still))}", "update every parameter that has a gradient")
    for _ in range(STEPS):
        run.step(subject, late=False)
    if not run.loss() < loss:
        subject.fail(
            f"takes a quadratic's loss from {loss:.3g} to {run.loss():.3g} in {STEPS} steps at the learning rate {LR}",
            "step against the gradient",
        )
    for scale in (0.0, 1e-30, 1e8):
        run.step(subject, scale=scale)
        if wrong := [name for name, value in run.values().items() if not value.isfinite().all()]:
            subject.fail(
                f"makes {', '.join(wrong)} NaN or infinite with gradients of {scale:g} times the usual",
                "divide by no zero: add a small number to what a gradient is divided by",
            )


def _check_state(subject: Subject) -> None:
    run = Run(subject)
    run.step(subject)
    for name, parameter in run.parameters.items():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            if not isinstance(value, (Tensor, int, float)):
                subject.fail(
                    f"keeps a {type(value).__name__}, {key!r}, in the state of {name}",
                    "keep tensors and numbers: nothing is pickled in a checkpoint",
                )
            if torch.as_tensor(value).isnan().any():
                subject.fail(
                    f"keeps a NaN, {key!r}, in the state of {name}",
                    "start from another number: a checkpoint that holds NaN is taken for damaged",
                )


def _check_resume(subject: Subject) -> None:
    """Saved and restored as the trainer does it, it goes on bit for bit, also where a first gradient comes late."""
    whole, stopped = Run(subject), Run(subject)
    for run in (whole, stopped):
        for number in range(SAVED_AT):
            run.step(subject, LR / (1 + number), late=False)
    values, saved = stopped.values(), _written(optimizer_tensors(stopped.optimizer, stopped.parameters))
    resumed = Run(subject)
    with subject.expecting("making its state for a resume", "let a step with zeros everywhere make all entries"):
        make_optimizer_state(resumed.optimizer, resumed.parameters, saved, SAVED_AT)
    made = optimizer_tensors(resumed.optimizer, resumed.parameters)
    if other := sorted(name for name in saved.keys() | made.keys() if _form(saved, name) != _form(made, name)):
        names = ", ".join(name.removeprefix("optimizer.") for name in other)
        subject.fail(
            f"has other state after {SAVED_AT} steps than after its first: {names}",
            "make every entry, of its final shape and type, at the parameter's first gradient",
        )
    restore_optimizer(resumed.optimizer, resumed.parameters, saved)
    for name, parameter in resumed.parameters.items():
        parameter.data.copy_(values[name])
    for number in range(RESUMED):
        for run in (whole, resumed):
            run.step(subject, LR / (1 + SAVED_AT + number), late=number > 1)
        if other := sorted(_changed(whole.values(), resumed)):
            subject.fail(
                f"goes on otherwise after a resume: {', '.join(other)} differ {number + 1} steps later",
                "keep what it remembers in self.state[parameter], as tensors or numbers: attributes, other keys of the "
                "state and entries of groups are made anew from the configuration",
            )


def _written(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What comes back from a file."""
    with TemporaryDirectory() as folder:
        save_tensors(tensors, Path(folder) / "state.safetensors")
        return load_tensors(Path(folder) / "state.safetensors")


def _form(tensors: dict[str, Tensor], name: str) -> Any:
    return (tensors[name].shape, tensors[name].dtype) if name in tensors else None


def _changed(before: dict[str, Tensor], run: Run) -> set[str]:
    return {name for name, value in run.values().items() if not value.equal(before[name])}


OPTIMIZER_CHECKS = (_check_groups, _check_steps, _check_state, _check_resume)
