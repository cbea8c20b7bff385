"""Training one model in several processes, replicated or in shards. Applied from outside: models know nothing of it."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wavelet_core import build_model
from wavelet_core.checkpoint import materialize, named_tensors
from wavelet_core.config import ConfigurationError, LanguageModelConfig
from wavelet_train.ranks import Ranks

Parallelism = Literal["auto", "ddp", "fsdp"]
# What the names of an optimizer's and an average's tensors begin with, before that of the parameter.
STATE_PREFIXES = ("optimizer.", "average.parameters.")


class Together:
    """How the processes of a run share a model; this class is for a process that is alone.

    loss: what computes the training loss, and whose backward pass leaves the mean gradients of all processes.
    saves_together: whether all of them write a checkpoint, and not the first alone.
    """

    saves_together = False

    def __init__(self, loss: nn.Module, ranks: Ranks):
        self.loss, self.ranks = loss, ranks

    def own_loss(self, *inputs: Any) -> Tensor:
        """The loss of this process's rows, not compiled, and no gradient that other processes have to wait for."""
        loss: Tensor = self.loss.forward(*inputs)
        return loss

    def accumulating(self, more: bool) -> AbstractContextManager[Any]:
        """Around a forward and backward pass; more: another one of the same optimizer step follows."""
        return nullcontext()

    def clip(self, parameters: list[nn.Parameter], largest: float | None) -> float:
        """Scale the gradients down to a norm; returns the one that they had."""
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest)
        return whole(norm).item()

    def gather(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The whole tensors, as one process has them, for the first process. All processes take part."""
        return tensors

    def shapes(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors of the shapes and types of what `gather` gives, whatever is in them."""
        return tensors

    def shards(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of which this process has a part."""
        return {}

    def whole_model(self, model: nn.Module, config: LanguageModelConfig) -> Any:
        """A model for evaluation with all of the weights as they are. All processes take part."""
        return model


class Replicated(Together):
    """Every process has the model and reads its own rows; gradients are averaged (DistributedDataParallel)."""

    def __init__(self, loss: nn.Module, ranks: Ranks):
        # Which parameters a pass does not use is for the model to decide: blocks that are left out, unused options.
        wrapped = nn.parallel.DistributedDataParallel(loss, find_unused_parameters=True, broadcast_buffers=False)
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        super().__init__(wrapped, ranks)

    def own_loss(self, *inputs: Any) -> Tensor:
        loss: Tensor = self.loss.module.forward(*inputs)  # type: ignore[union-attr]
        return loss

    def accumulating(self, more: bool) -> AbstractContextManager[Any]:
        return self.loss.no_sync() if more else nullcontext()  # type: ignore[operator]


class Sharded(Together):
    """Every process keeps a part of each parameter, its gradient and the optimizer's state (`fully_shard`, FSDP2).

    A block's parameters are put together when it computes, and let go afterwards. What several blocks have in common,
    such as a shared wavelet, is a group of its own that stays together until the backward pass is done. Scalars become
    vectors with one entry.

    dtype: of the parameters while they are used, and of what a block reads.
    """

    saves_together = True

    def __init__(self, model: nn.Module, loss: nn.Module, ranks: Ranks, dtype: torch.dtype):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if dtype == torch.float16:
            raise ConfigurationError(
                "train.parallel=fsdp cannot scale losses, which train.precision=float16 needs; use bfloat16, float32 "
                "or train.parallel=ddp"
            )
        self.scalars = {name for name, parameter in model.named_parameters() if parameter.dim() == 0}
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 0:
                    setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
        low = dtype if dtype != torch.float32 else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
        blocks = blocks_of(model)
        uses = Counter(parameter for block in blocks for parameter in set(block.parameters()))
        shared = {parameter for parameter, count in uses.items() if count > 1}
        holders = [
            module
            for module in model.modules()
            if any(parameter in shared for parameter in module.parameters(recurse=False))
        ]
        for block in blocks:
            fully_shard(block, mp_policy=policy, ignored_params=shared)
        if holders:
            fully_shard(holders, mp_policy=policy, reshard_after_forward=False)
            group: Any = holders[0]
            loss.register_forward_pre_hook(lambda *_: group.unshard() and None)
        fully_shard(loss, mp_policy=policy)
        # A shared part may give a view, which nothing here writes to.
        warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
        super().__init__(loss, ranks)

    def own_loss(self, *inputs: Any) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            loss: Tensor = self.loss(*inputs)
        return loss

    def accumulating(self, more: bool) -> AbstractContextManager[Any]:
        self.loss.set_requires_gradient_sync(not more)  # type: ignore[operator]
        return nullcontext()

    def gather(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            value = self._as_alone(name, whole(tensor))
            if self.ranks.is_first:  # all of them together may be too much for its device
                found[name] = value.detach().cpu()
        return found

    def shapes(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
        return {name: self._as_alone(name, tensor) for name, tensor in empty.items()}

    def shards(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if is_shard(tensor) and tensor.numel() > 1}

    def _as_alone(self, name: str, tensor: Tensor) -> Tensor:
        for prefix in STATE_PREFIXES:
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                name = name.rpartition(".")[0] if prefix == "optimizer." else name
        return tensor.reshape(()) if name in self.scalars and tensor.numel() == 1 else tensor

    def whole_model(self, model: nn.Module, config: LanguageModelConfig) -> Any:
        with torch.device("meta"):
            copy = build_model(config)
        device = next(model.parameters()).device
        tensors = {name: self._as_alone(name, whole(tensor)).detach() for name, tensor in named_tensors(model).items()}
        materialize(copy, tensors, device)
        return copy


def work_together(kind: Parallelism, model: nn.Module, loss: nn.Module, ranks: Ranks, dtype: torch.dtype) -> Together:
    """Let the processes of a run share a model in the way that `train.parallel` names; alone, as it is."""
    if ranks.count == 1:
        return Together(loss, ranks)
    return Sharded(model, loss, ranks, dtype) if kind == "fsdp" else Replicated(loss, ranks)


def is_shard(tensor: Tensor) -> bool:
    """Whether this process has only a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in shards."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Overwrite a tensor that may be in shards by a whole one."""
    value = value.to(target.device).reshape(target.shape)
    if is_shard(target):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)  # type: ignore[attr-defined]
    target.copy_(value)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The modules that a model applies one after the other: what its outermost lists hold."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(entry for entry in child if any(True for _ in entry.parameters()))
            else:
                visit(child)

    visit(model)
    return list(dict.fromkeys(found))
