"""Recomputing a block in the backward pass instead of keeping its activations (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from wavelet_core.state import Tree, map_tree


class _Repeatable:
    """A block that can be run again: later runs start from the state and buffers of the first and change neither.

    Reading moves a streaming state on, and a training pass moves buffers such as power iteration's.
    """

    def __init__(self, block: nn.Module, state: Tree | None, named: dict[str, Tensor]):
        self.block = block
        self.named = named
        self.state = state
        self.state_before = None if state is None else map_tree(Tensor.clone, state)
        tensors = block.state_dict(keep_vars=True)
        self.buffers_before = {
            name: tensor.clone() for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)
        }
        self.first = True

    def __call__(self, *inputs: Tensor | None) -> Any:
        if self.first:
            self.first = False
            return self.block(*inputs, self.state, **self.named)
        state = None if self.state_before is None else map_tree(Tensor.clone, self.state_before)
        buffers = {name: tensor.clone() for name, tensor in self.buffers_before.items()}
        return functional_call(self.block, buffers, (*inputs, state), self.named)


def run_checkpointed(block: nn.Module, *inputs: Tensor | None, state: Tree | None, **named: Any) -> Any:
    """block(*inputs, state, **named), recomputed in the backward pass: the same numbers, less memory, more time."""
    if torch.compiler.is_compiling():
        return checkpoint(block, *inputs, state, use_reentrant=False, **named)
    return checkpoint(_Repeatable(block, state, named), *inputs, use_reentrant=False)
