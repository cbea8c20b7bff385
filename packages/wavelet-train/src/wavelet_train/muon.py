"""Muon: steps along orthogonalised momentum for the hidden matrices of a model, AdamW for everything else."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adamw import adamw

from wavelet_train.optimizers import all_on
from wavelet_train.orthogonalization import orthogonalize_all
from wavelet_train.parameter_groups import DECAYED, GroupedConfig, NamedParameters, parameter_groups

# The root mean square that the entries of AdamW's steps have, in learning rates (Liu et al. 2025).
ROOT_MEAN_SQUARE = 0.2


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for hidden matrices, every matrix of a stack by itself, and AdamW for the rest.

    A matrix (M, K) moves along its momentum with all singular values near 1, times lr 0.2 sqrt(max(M, K)): such a step
    is as large as one of AdamW's, so that both take the same learning rate and weight decay (Liu et al. 2025, "Muon is
    Scalable for LLM Training").
    """

    class Config(GroupedConfig):
        kind: Literal["muon"] = "muon"
        matrices: list[str] = Field(
            ["*weight*"],
            description="names of hidden matrices, with * and ? as in `groups`: Muon takes those of them that have two "
            "dimensions, or three as a stack of matrices",
        )
        adamw: list[str] = Field(
            ["*embed*", "*head*", "*norm*", "*routing*", "*keys*", "*values*"],
            description="names of those that AdamW takes all the same: embedding, head, tables",
        )
        matrix_lr_factor: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="hidden matrices: the learning rate times this"
        )
        momentum: float = Field(0.95, ge=0, lt=1, description="decay of a matrix's running mean of gradients, per step")
        nesterov: bool = Field(True, description="step along what the mean would be after the same gradient once more")
        iterations: int = Field(5, ge=1, le=50, description="Newton-Schulz iterations that orthogonalise a matrix")
        beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the running mean of gradients, per step")
        beta2: float = Field(0.99, ge=0, lt=1, description="AdamW's decay of the mean of squared gradients, per step")
        eps: float = Field(1e-8, gt=0, description="added to the root of AdamW's mean of squared gradients")
        weight_decay: float = Field(
            0.01, ge=0, description="decoupled: weights shrink by lr * weight_decay of themselves per step"
        )
        decayed: Literal["all", "matrices"] = Field("matrices", description=DECAYED)

        def is_hidden_matrix(self, name: str, parameter: nn.Parameter) -> bool:
            """Whether a parameter is Muon's."""
            named = any(fnmatchcase(name, pattern) for pattern in self.matrices)
            excepted = any(fnmatchcase(name, pattern) for pattern in self.adamw)
            return parameter.dim() in (2, 3) and named and not excepted

    def __init__(self, config: Config, named_parameters: NamedParameters, lr: float):
        named = list(named_parameters)
        matrices = {parameter for name, parameter in named if config.is_hidden_matrix(name, parameter)}
        groups = []
        for group in parameter_groups(config, named):
            for is_muon, factor in ((True, config.matrix_lr_factor), (False, 1.0)):
                members = [parameter for parameter in group["params"] if (parameter in matrices) == is_muon]
                if members:
                    factor *= group["lr_factor"]
                    groups.append({**group, "params": members, "lr_factor": factor, "muon": is_muon})
        super().__init__(groups, {"lr": lr})
        self.config = config
        self.fused = all_on(groups, ("cpu", "cuda"))

    def describe(self) -> str:
        """Which of the two has how much, in a line for people."""
        parts: dict[bool, list[Tensor]] = {True: [], False: []}
        for group in self.param_groups:
            parts[group["muon"]] += group["params"]
        matrices = sum(parameter.shape[:-2].numel() for parameter in parts[True])
        muon, others = (sum(parameter.numel() for parameter in part) for part in parts.values())
        return f"Muon: {matrices:,} matrices, {muon:,} parameters; AdamW: {others:,} parameters"

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                move = self._move_matrices if group["muon"] else self._move_others
                move(group, parameters, [parameter.grad for parameter in parameters])

    def _move_matrices(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momentum, lr = self.config.momentum, group["lr"]
        means = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum) if self.config.nesterov else means
        directions = orthogonalize_all(ahead, self.config.iterations)
        torch._foreach_mul_(directions, [-lr * ROOT_MEAN_SQUARE * max(each.shape[-2:]) ** 0.5 for each in directions])
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, directions)

    def _move_others(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device if self.fused else "cpu")
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True if self.fused else None,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self.config.eps,
            maximize=False,
        )
