"""Optimizers: components of kind `optimizer`.

Each is a `torch.optim.Optimizer` built as `(config, named_parameters, lr)`; plugins add their own in the same way.
The learning rate is the schedule's: before each step the trainer writes it into every parameter group, times the
group's `lr_factor` where it has one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from wavelet_train.parameter_groups import DECAYED, GroupedConfig, NamedParameters, parameter_groups


def all_on(groups: list[dict[str, Any]], device_types: tuple[str, ...]) -> bool:
    return all(parameter.device.type in device_types for group in groups for parameter in group["params"])


def in_shards(group: dict[str, Any]) -> bool:
    """Whether processes share the parameters of a group out among themselves."""
    return any(hasattr(parameter, "full_tensor") for parameter in group["params"])


class AdamW(torch.optim.AdamW):
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019), of matrices only unless asked otherwise.

    One fused update per step on processors and CUDA devices, torch's own choice elsewhere.
    """

    class Config(GroupedConfig):
        kind: Literal["adamw"] = "adamw"
        beta1: float = Field(0.9, ge=0, lt=1, description="decay of the running mean of gradients, per step")
        beta2: float = Field(0.99, ge=0, lt=1, description="decay of the running mean of squared gradients, per step")
        eps: float = Field(1e-8, gt=0, description="added to the root of the running mean of squared gradients")
        weight_decay: float = Field(
            0.01, ge=0, description="decoupled: weights shrink by lr * weight_decay of themselves per step"
        )
        decayed: Literal["all", "matrices"] = Field("matrices", description=DECAYED)

    def __init__(self, config: Config, named_parameters: NamedParameters, lr: float):
        groups = parameter_groups(config, named_parameters)
        fused = True if all_on(groups, ("cpu", "cuda")) else None
        super().__init__(groups, lr=lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)


class Adagrad(torch.optim.Adagrad):
    """Adagrad (Duchi, Hazan and Singer 2011), the published recipe's optimizer (docs/model.md, section 8).

    Weight decay is added to the gradient, of every parameter: that is what the recipe's 1e-6 means. One fused update
    per step on processors, one per operation for all parameters (`foreach`) on CUDA devices.
    """

    class Config(GroupedConfig):
        kind: Literal["adagrad"] = "adagrad"
        eps: float = Field(1e-10, gt=0, description="added to the root of the sum of squared gradients")
        lr_decay: float = Field(0.0, ge=0, description="step n uses lr / (1 + lr_decay * n), on top of the schedule")
        initial_accumulator: float = Field(0.0, ge=0, description="what the sums of squared gradients start from")
        weight_decay: float = Field(0.0, ge=0, description="weight_decay times the weight is added to its gradient")

    def __init__(self, config: Config, named_parameters: NamedParameters, lr: float):
        groups = parameter_groups(config, named_parameters)
        super().__init__(
            groups,
            lr=lr,
            eps=config.eps,
            lr_decay=config.lr_decay,
            initial_accumulator_value=config.initial_accumulator,
            # torch has no fused update of shards.
            fused=True if all_on(groups, ("cpu",)) and not any(map(in_shards, groups)) else None,
        )
