"""Groups of parameters with learning rates and weight decays of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from wavelet_core import ConfigurationError, build
from wavelet_train.muon import Muon
from wavelet_train.optimizers import Adagrad, AdamW
from wavelet_train.parameter_groups import parameter_groups
from wavelet_train.trainer import Trainer

RULES = [
    {"match": "*.bias", "lr_factor": 0.5, "weight_decay": 0.3},
    {"match": "0.*", "lr_factor": 2.0},
    {"match": "*", "weight_decay": 0.0},
]


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))


def found(config: Any, module: nn.Module) -> dict[str, tuple[float, float]]:
    """Factor and decay of every parameter that is in a group."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        names[parameter]: (group["lr_factor"], group["weight_decay"])
        for group in parameter_groups(config, module.named_parameters())
        for parameter in group["params"]
    }


def test_the_first_rule_that_matches_counts() -> None:
    config = AdamW.Config(weight_decay=0.1, groups=RULES)
    assert found(config, model()) == {
        "0.weight": (2.0, 0.1),
        "0.bias": (0.5, 0.3),
        "1.weight": (1.0, 0.0),
        "1.bias": (0.5, 0.3),
    }


def test_without_rules_only_decay_divides() -> None:
    module = model()
    module[1].weight.requires_grad = False
    assert found(AdamW.Config(weight_decay=0.1), module) == {
        "0.weight": (1.0, 0.1),
        "0.bias": (1.0, 0.0),
        "1.bias": (1.0, 0.0),
    }


@pytest.mark.parametrize("kind", [AdamW, Adagrad, Muon])
def test_a_rule_that_matches_nothing_names_what_is_near(kind: Any) -> None:
    config = kind.Config(groups=[{"match": "*"}, {"match": "1.wieght"}])
    with pytest.raises(ConfigurationError) as error:
        build("optimizer", config, model().named_parameters(), 0.1)
    assert str(error.value) == (
        "train.optimizer.groups[1].match: no parameter of the model is called '1.wieght'; did you mean '1.weight'?"
    )


@pytest.mark.parametrize("kind", [AdamW, Adagrad, Muon])
def test_trainer_multiplies_the_schedules_rate(kind: Any, new_trainer: Callable[..., Trainer]) -> None:
    rules = "[{match: 'embedding.*', lr_factor: 0}, {match: 'blocks.*', lr_factor: 0.5}]"
    trainer = new_trainer(f"train.optimizer={{kind: {kind.Config().kind}, groups: {rules}}}")
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    trainer.take_step(0.01)
    rates = {group["lr_factor"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {0.0: 0.0, 0.5: 0.005, 1.0: 0.01}
    still = {name for name, value in before.items() if torch.equal(value, trainer.parameters[name])}
    assert "embedding.weight" in still and "head.weight" not in still
