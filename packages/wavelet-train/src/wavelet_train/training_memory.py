"""What a training step needs of memory and arithmetic, found without either: by tensors that have no content."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from wavelet_core import build_model
from wavelet_core.config import ConfigurationError
from wavelet_train.precision import autocast
from wavelet_train.quantities import byte_size
from wavelet_train.run_config import RunConfig
from wavelet_train.tables import table
from wavelet_train.training_loss import TrainingLoss
from wavelet_train.training_state import optimizer_bytes

FLOAT32 = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that one of `processes` needs at the peak of a training step.

    gathered: parameters of the largest groups that shards are put together to (FSDP). activations: what the forward
    pass keeps for the backward pass. flops_per_token: of the matrix products of a step, two for a multiplication and
    its addition. Not counted: what operations and gradient checkpointing need while they run, and what an allocator
    holds back.
    """

    parameters: int
    processes: int
    parallel: str
    windows: int
    context_length: int
    precision: str
    weights: int
    gradients: int
    optimizer: int | None
    average: int
    gathered: int
    activations: int
    flops_per_token: int

    @property
    def total(self) -> int | None:
        """All of it; None where the optimizer does not tell what it will keep."""
        if self.optimizer is None:
            return None
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered + self.activations

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, for JSON."""
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        rows = [
            ("weights", self.weights, "float32"),
            ("gradients", self.gradients, "float32"),
            ("optimizer", self.optimizer, ""),
            ("average of the weights", self.average, ""),
            ("gathered parameters", self.gathered, "the largest block and what belongs to none, once each"),
            (
                "activations",
                self.activations,
                f"{self.windows} windows of {self.context_length} tokens, {self.precision}",
            ),
            ("together", self.total, "of each process" if self.processes > 1 else ""),
        ]
        lines = [
            (name, "not known" if size is None else byte_size(size), remark) for name, size, remark in rows if size != 0
        ]
        how = "" if self.processes == 1 else f", {self.processes} processes ({self.parallel})"
        return (
            f"{self.parameters:,} parameters{how}\n{table(lines)}\n"
            f"{self.flops_per_token / 1e6:,.0f} MFLOP a token in matrix products, forward and backward"
        )


def training_memory(run: RunConfig, processes: int = 1, device: str = "cpu") -> TrainingMemory:
    """What a step of a run needs, whose model knows its vocabulary.

    device: what the model is computed on, which decides what autocast and the model's own choices do. `train.precision:
    auto` counts as bfloat16.

    Raises ConfigurationError for a batch that does not divide among the processes.
    """
    config = run.train
    if config.batch_size % processes:
        raise ConfigurationError(
            f"train.batch_size={config.batch_size} windows cannot be shared out evenly among {processes} "
            f"processes: use a multiple of {processes}"
        )
    windows = config.batch_size // processes
    dtype = torch.bfloat16 if config.precision == "auto" else getattr(torch, config.precision)
    sharded = processes > 1 and config.parallel == "fsdp"
    with FakeTensorMode(), torch.device(device):
        model = build_model(run.model)
        loss = TrainingLoss(model).train()
        parameters = dict(model.named_parameters())
        activations, flops = _step(loss, run, windows, dtype)
    numbers = sum(parameter.numel() for parameter in parameters.values())
    parts = processes if sharded else 1
    optimizer = optimizer_bytes(config.optimizer, parameters, config.lr)
    return TrainingMemory(
        parameters=numbers,
        processes=processes,
        parallel=("fsdp" if sharded else "ddp") if processes > 1 else "none",
        windows=windows,
        context_length=run.model.context_length,
        precision=str(dtype).removeprefix("torch."),
        weights=FLOAT32 * numbers // parts,
        gradients=FLOAT32 * numbers // parts,
        optimizer=None if optimizer is None else optimizer // parts,
        average=FLOAT32 * numbers // parts if config.weight_average else 0,
        gathered=_gathered(model, dtype) if sharded else 0,
        activations=activations,
        flops_per_token=flops // (windows * run.model.context_length),
    )


def _step(loss: nn.Module, run: RunConfig, windows: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that a forward pass keeps besides the parameters, and operations of a forward and a backward pass."""
    own = {parameter.untyped_storage()._cdata for parameter in loss.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # so that no later storage has its address
        return tensor

    alive: list[Tensor] = []
    shape = (windows, run.model.context_length)
    tokens = torch.zeros(shape, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(tokens.device, dtype):
            value = loss(tokens, tokens)
        value.backward()
    return sum(kept.values()), counter.get_total_flops()


def _gathered(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the parameters that a process has whole at a time: the largest block's, and those of no single block."""
    from wavelet_train.parallel import blocks_of

    uses: dict[nn.Parameter, set[int]] = {}
    for index, block in enumerate(blocks_of(model)):
        for parameter in block.parameters():
            uses.setdefault(parameter, set()).add(index)
    alone: dict[int, int] = {}
    for parameter, places in uses.items():
        if len(places) == 1:
            index = next(iter(places))
            alone[index] = alone.get(index, 0) + parameter.numel()
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(alone.values())
    # Two blocks at a time: the next one is put together while one computes.
    return dtype.itemsize * (rest + sum(sorted(alone.values())[-2:]))
