"""What a model's linear maps read: the Hessians that rounding needs, collected while text runs through the model.

The Hessian of a matrix is the mean of x x^T over its inputs x. A module that is used in several places, or shares its
weight with others, is measured over all of its uses. What reads a weight without calling its module is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core.linear import StackedLinear

WIDEST = 4096  # channels of one block of a Hessian
ALIGNMENT = 128  # of blocks, so that no group of channels lies in two


def draw_windows(tokens: Any, length: int, count: int, seed: int = 0) -> Tensor:
    """Windows (count, length), int64, at random places of a stream of tokens, a one-dimensional array or tensor.

    Raises ValueError where the stream is shorter than a window.
    """
    places = len(tokens) - length + 1
    if places < 1:
        raise ValueError(f"a text of {len(tokens)} tokens is too short to calibrate with: a window takes {length}")
    starts = torch.randint(places, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.as_tensor(tokens[starts[:, None] + torch.arange(length)]).long()


def hessian_shape(weight_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape (..., blocks, size, size) of the Hessian of a weight (..., M, K).

    Up to 4096 channels are one block; more are cut into equal blocks of whole groups, the last filled up with zeros.
    """
    *stack, _, width = weight_shape
    blocks = -(-width // WIDEST)
    size = width if blocks == 1 else -(-width // (blocks * ALIGNMENT)) * ALIGNMENT
    return (*stack, blocks, size, size)


def collect_hessians(
    model: nn.Module,
    windows: Sequence[Any],
    modules: Iterable[nn.Module] | None = None,
    memory: int = 2 << 30,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[nn.Module, Tensor]]:
    """The Hessians (..., blocks, size, size) of a model's linear maps, float32, by module.

    windows: batches of tokens, or of what else the model is called with. modules: whose Hessians are wanted, by default
    every `nn.Linear` and `StackedLinear`; those that the model does not call get none. memory: bytes that Hessians may
    take at a time, if one alone does not take more. They come in groups of that size, each collected by a pass over all
    windows when it is asked for. progress: called with the batches done, and with those of all passes.

    The model runs in evaluation mode and is left in the mode that it was in.
    """
    if modules is None:
        modules = (module for module in model.modules() if isinstance(module, nn.Linear | StackedLinear))
    sharing: dict[Tensor, list[nn.Module]] = {}
    for module in modules:
        weight: Any = module.weight
        sharing.setdefault(weight, []).append(module)
    groups: list[list[Tensor]] = []
    room = 0
    for weight in sharing:
        size = 4 * math.prod(hessian_shape(weight.shape))
        if not groups or size > room:
            groups.append([])
            room = memory
        groups[-1].append(weight)
        room -= size
    for number, group in enumerate(groups):
        hessians = {module: hessian for weight in group for hessian in [_Hessian(weight)] for module in sharing[weight]}
        first, total = number * len(windows), len(groups) * len(windows)
        for done in _run(model, windows, hessians):
            progress(first + done, total)
        means = {hessian: hessian.mean() for hessian in set(hessians.values()) if hessian.count}
        yield {module: means[hessian] for module, hessian in hessians.items() if hessian in means}


class _Hessian:
    """The mean of x x^T over the inputs x of a weight (..., M, K)."""

    def __init__(self, weight: Tensor):
        self.shape = hessian_shape(weight.shape)
        self.width = weight.shape[-1]
        self.sum = torch.zeros(self.shape, device=weight.device)
        self.count = 0

    def add(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A hook before a module's forward."""
        *stack, blocks, size, _ = self.shape
        x: Tensor = (*arguments, *named.values())[0]
        x = x.detach().float().reshape(*stack, -1, self.width)
        self.count += x.shape[-2]
        x = F.pad(x, (0, blocks * size - self.width)).unflatten(-1, (blocks, size)).transpose(-2, -3)
        x = x.reshape(-1, *x.shape[-2:])
        self.sum.view(-1, size, size).baddbmm_(x.mT, x)

    def mean(self) -> Tensor:
        return self.sum.div_(self.count)


def _run(model: nn.Module, windows: Sequence[Any], hessians: dict[nn.Module, _Hessian]) -> Iterator[int]:
    """Run the windows through the model, with its inputs added to the Hessians; the number of those done, each time."""
    training = [module for module in model.modules() if module.training]
    handles = [module.register_forward_pre_hook(hessian.add, with_kwargs=True) for module, hessian in hessians.items()]
    model.eval()
    try:
        for done, window in enumerate(windows, 1):
            with torch.no_grad():
                model(window)
            yield done
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
