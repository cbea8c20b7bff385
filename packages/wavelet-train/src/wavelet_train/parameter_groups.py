"""Groups of parameters: which of them decay, and which train at another rate."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field
from torch import nn

from wavelet_core.config import ComponentConfig, ConfigurationError, Section
from wavelet_core.messages import shown
from wavelet_core.registry import nearest

NamedParameters = Iterable[tuple[str, nn.Parameter]]

DECAYED = "all: every parameter decays; matrices: those with two or more dimensions (not biases, norms, scalars)"


class GroupRule(Section):
    """What is different for some parameters."""

    match: str = Field(
        min_length=1,
        description="their names in the model; * stands for any characters, dots too, ? for one, [0-3] for a digit",
    )
    lr_factor: float = Field(1.0, ge=0, allow_inf_nan=False, description="the schedule's learning rate times this")
    weight_decay: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight decay, whatever `decayed` says; null: the optimizer's"
    )

    def matches(self, name: str) -> bool:
        return fnmatchcase(name, self.match)


class GroupedConfig(ComponentConfig):
    """What every optimizer of ours has: weight decay, a choice of what decays, and rules for some parameters."""

    weight_decay: float = Field(0.0, ge=0, description="weight decay; how it enters is the optimizer's")
    decayed: Literal["all", "matrices"] = Field("all", description=DECAYED)
    groups: list[GroupRule] = Field(
        [],
        description="learning rates and weight decays of some parameters; the first rule that matches counts",
    )


def parameter_groups(config: GroupedConfig, named_parameters: NamedParameters) -> list[dict[str, Any]]:
    """One group for every learning rate and weight decay, with `lr_factor` and `weight_decay`; frozen ones in none.

    Raises ConfigurationError for a rule that matches no parameter.
    """
    named = list(named_parameters)
    _check_matches(config, [name for name, _ in named])
    least_dimensions = 0 if config.decayed == "all" else 2
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        rule = next((rule for rule in config.groups if rule.matches(name)), None)
        decay = config.weight_decay if parameter.dim() >= least_dimensions else 0.0
        if rule is not None and rule.weight_decay is not None:
            decay = rule.weight_decay
        if parameter.requires_grad:
            groups.setdefault((1.0 if rule is None else rule.lr_factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": lr_factor, "weight_decay": decay}
        for (lr_factor, decay), parameters in groups.items()
    ]


def _check_matches(config: GroupedConfig, names: list[str]) -> None:
    for index, rule in enumerate(config.groups):
        if not any(map(rule.matches, names)):
            raise ConfigurationError(
                f"train.optimizer.groups[{index}].match: no parameter of the model is called "
                f"{shown(rule.match)}{nearest(rule.match.strip('*'), names)}"
            )
