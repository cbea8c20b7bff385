"""Optimizers: what their options change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wavelet_core import build
from wavelet_train.optimizers import Adagrad, AdamW


def model() -> nn.Linear:
    """A matrix of ones and a bias of ones."""
    layer = nn.Linear(3, 2)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


def after(config: Any, gradients: list[float], lr: float = 0.1) -> tuple[Tensor, Tensor]:
    """Weight and bias after one step for each gradient, the same for every element."""
    layer = model()
    optimizer = build("optimizer", config, layer.named_parameters(), lr)
    for gradient in gradients:
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return layer.weight.detach(), layer.bias.detach()


def test_adagrad_follows_its_formula() -> None:
    config = Adagrad.Config(eps=1e-3, lr_decay=0.5, initial_accumulator=0.25, weight_decay=0.1)
    value, total = 1.0, 0.25
    for step, gradient in enumerate([0.5, -2.0, 1.0]):
        decayed = gradient + 0.1 * value
        total += decayed**2
        value -= 0.1 / (1 + 0.5 * step) * decayed / (total**0.5 + 1e-3)
    for parameter in after(config, [0.5, -2.0, 1.0]):
        torch.testing.assert_close(parameter, torch.full_like(parameter, value))


def test_adamw_follows_its_formula() -> None:
    config = AdamW.Config(beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.2, decayed="all")
    value, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate([0.5, -2.0, 1.0], start=1):
        value -= 0.1 * 0.2 * value
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        value -= 0.1 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)) ** 0.5 + 1e-3)
    for parameter in after(config, [0.5, -2.0, 1.0]):
        torch.testing.assert_close(parameter, torch.full_like(parameter, value))


@pytest.mark.parametrize("kind", [AdamW, Adagrad])
def test_decay_of_matrices_leaves_biases_alone(kind: Any) -> None:
    weight, bias = after(kind.Config(weight_decay=0.5, decayed="matrices"), [0.0])
    assert (weight < 1).all() and (bias == 1).all()
    weight, bias = after(kind.Config(weight_decay=0.5, decayed="all"), [0.0])
    assert (weight < 1).all() and (bias < 1).all()


def test_defaults_decay_what_their_recipes_do() -> None:
    assert AdamW.Config().decayed == "matrices"
    assert Adagrad.Config().decayed == "all"


def test_frozen_parameters_are_left_out() -> None:
    layer = model()
    layer.bias.requires_grad = False
    optimizer = build("optimizer", AdamW.Config(decayed="all"), layer.named_parameters(), 0.1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


@pytest.mark.parametrize("kind", [AdamW, Adagrad])
def test_update_is_fused_on_processors(kind: Any) -> None:
    optimizer = build("optimizer", kind.Config(), model().named_parameters(), 0.1)
    assert all(group["fused"] for group in optimizer.param_groups)
