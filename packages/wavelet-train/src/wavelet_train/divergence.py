"""Finding where numbers stop being finite: in a weight, in the forward pass, or in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from wavelet_core.checkpoint import named_tensors
from wavelet_core.tensor_files import non_finite
from wavelet_train.parallel import whole
from wavelet_train.ranks import ALONE, Ranks


class DivergenceError(ValueError):
    """Losses or gradients are no longer numbers; the message says since when, where that begins, and what to change."""


class _Watch:
    """Hooks on all modules that note the first value that is not finite.

    The name is that of the module's first place in the model; if blocks share it, the one that is at work is added.
    """

    def __init__(self, model: nn.Module, hooks: ExitStack):
        self.found: str | None = None
        self.running: list[str] = []
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(self._enter, name)))
            hooks.enter_context(module.register_forward_hook(partial(self._leave, name)))

    def _enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        self._look("the input of", name, module, inputs)
        self.running.append(name)

    def _leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.running.pop()
        self._look("the output of", name, module, output)

    def _look(self, what: str, name: str, module: nn.Module, value: Any) -> None:
        if self.found is None and any(non_finite(tensor) for tensor in _tensors(value)):
            kind = type(module).__name__
            sharing = [f" in {other}" for other in self.running if other and not name.startswith(f"{other}.")]
            self.found = f"{what} {f'{name} ({kind})' if name else kind}{''.join(sharing[:1])}"


def first_not_finite(model: nn.Module, losses: Iterable[Callable[[], Tensor]], ranks: Ranks = ALONE) -> str:
    """What of a model is the first to be infinite or not a number when these losses are computed, for people.

    losses: compute each, of one batch, anew. Their gradients are added to those of the parameters. ranks: processes
    that look together, each in its own batches.
    """
    for name, tensor in named_tensors(model).items():
        if count := non_finite(whole(tensor)):
            return f"{name}, {count:,} of whose {tensor.numel():,} values are not finite before the step"
    # Nobody stops at what is found: shards of other processes may be needed until all of them are through.
    found = ranks.gather(_first_in_passes(model, losses))
    if any(found):
        rank = next(rank for rank, each in enumerate(found) if each)
        return f"{found[rank]}{f' in process {rank} of {ranks.count}' if ranks.count > 1 else ''}"
    return "nothing when the batch was computed again"


def _first_in_passes(model: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> str | None:
    with ExitStack() as hooks:
        watch = _Watch(model, hooks)
        for loss in losses:
            value = loss()
            if non_finite(value):
                watch.found = watch.found or "the loss itself"
            value.backward()
    # Backward passes go from the last parameters to the first.
    gradients = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    bad = [name for name, gradient in reversed(gradients) if non_finite(whole(gradient))]
    return watch.found or (f"the gradient of {bad[0]}" if bad else None)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)
