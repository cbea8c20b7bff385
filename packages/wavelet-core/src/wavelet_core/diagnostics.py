"""What there is to see of the parts of a model while it reads a text.

A part that has something to show offers `diagnose(*inputs)`, which is given what its `forward` (`decompose` for a
wavelet) was given and yields `Diagnostic`s. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from wavelet_core.registry import registry


@dataclass(frozen=True)
class Diagnostic:
    """Numbers of one part, for a figure: a curve if `values` has one axis, a map (rows, columns) if it has two.

    title: what they are; those of several blocks with one title are shown together. axes: what each axis counts.
    unit: of the values. ticks: for each axis, what its entries are called, None where they are only counted; a curve
    with ticks is a row of a table. logarithmic: the values, and the axis of a curve, spread over powers of ten.
    explanation: how to read it, for people.
    """

    title: str
    values: Tensor
    axes: tuple[str, ...]
    unit: str
    ticks: tuple[Sequence[str] | None, ...] = ()
    logarithmic: bool = False
    explanation: str = ""


def scale_names(scales: int) -> list[str]:
    """What the scales are called, coarse to fine."""
    return ["approximation", *(f"detail {level}" for level in range(scales - 1, 0, -1))]


@torch.no_grad()
def diagnose(model: Any, tokens: Tensor) -> list[tuple[str, Diagnostic]]:
    """All diagnostics of a model that reads a text (T,), each with the block that it comes from, in reading order.

    Every part is asked once, when it is first used. Works for any family: what is in no block is called by its path.
    """
    training = model.training
    watch = _Watch()
    try:
        watch.begin(model.eval())
        model.hidden(tokens[None])
    finally:
        watch.end()
        model.train(training)
    return watch.found


class _Watch:
    """Looks over the shoulder of a model's parts. found: what they showed."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Diagnostic]] = []
        self._asked: set[nn.Module] = set()
        self._place: list[str] = []
        self._decomposing = 0
        self._handles: list[RemovableHandle] = []
        self._wavelets: list[Any] = []

    def begin(self, model: nn.Module) -> None:
        blocks = {registry.get("block", name) for name in registry.names("block")}
        numbers = count()
        for path, module in model.named_modules():
            if type(module) in blocks:
                self._handles += [
                    module.register_forward_pre_hook(lambda *_: self._place.append(f"block {next(numbers)}")),
                    module.register_forward_hook(lambda *_: self._leave()),
                ]
            if hasattr(module, "decompose"):
                self._wavelets.append(module)
                module.decompose = partial(self._decompose, module, module.decompose, path)
            elif hasattr(module, "diagnose"):
                self._handles.append(module.register_forward_pre_hook(partial(self._ask, path)))

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        for wavelet in self._wavelets:
            del wavelet.decompose

    def _leave(self) -> None:
        self._place.pop()

    def _show(self, path: str, shown: Diagnostic) -> None:
        self.found.append((self._place[-1] if self._place else path, shown))

    def _ask(self, path: str, part: Any, inputs: Sequence[Any]) -> None:
        if part not in self._asked:
            self._asked.add(part)
            for shown in part.diagnose(*inputs):
                self._show(path, shown)

    def _decompose(self, wavelet: Any, decompose: Callable[..., Tensor], path: str, *inputs: Any) -> Tensor:
        if hasattr(wavelet, "diagnose"):
            self._ask(path, wavelet, inputs)
        self._decomposing += 1
        coefficients = decompose(*inputs)
        self._decomposing -= 1
        if not self._decomposing:  # not a wavelet within a wavelet
            self._show(path, energy_diagnostic(coefficients[0]))
        return coefficients


def energy_diagnostic(coefficients: Tensor) -> Diagnostic:
    """The scalogram of a text's coefficients (T, S, P)."""
    energy = coefficients.float().square().mean(-1).sqrt().T
    return Diagnostic(
        "Scalogram: energy per scale along the text",
        energy,
        ("scale", "position"),
        "root mean square",
        (scale_names(len(energy)), None),
        logarithmic=True,
        explanation="Root mean square of the wavelet coefficients over the channels, coarse to fine.",
    )
