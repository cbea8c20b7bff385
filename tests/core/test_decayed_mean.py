"""The mean with data-dependent decay: its definition, and what it starts as."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wavelet_core import ModelShape, RunningMeanBypass
from wavelet_core.decayed_mean import DecayedMeanBypass
from wavelet_core.testing import check_component

SHAPE = ModelShape(width=6, levels=2)


def bypass_of(longest=None):
    torch.manual_seed(0)
    return DecayedMeanBypass(DecayedMeanBypass.Config(longest=longest), SHAPE)


@pytest.mark.parametrize("longest", [None, 40.0])
def test_it_is_its_definition(longest):
    bypass = bypass_of(longest)
    for parameter in bypass.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 30, 6)
    mean, wanted = torch.zeros(2, 6), []
    with torch.no_grad():
        for t in range(30):
            clock = 1.0 if longest else math.log1p(1 / t) if t else math.inf
            decay = torch.exp(-clock * bypass.log_rate.exp() * F.softplus(bypass.rate(x[:, t])))
            mean = decay * mean + (1 - decay) * x[:, t]
            wanted.append(mean)
        torch.testing.assert_close(bypass.mean(x, None), torch.stack(wanted, 1), rtol=1e-4, atol=1e-5)


def test_it_starts_as_the_running_mean():
    x = torch.randn(2, 50, 6)
    running = RunningMeanBypass(RunningMeanBypass.Config(), SHAPE)
    torch.testing.assert_close(bypass_of().mean(x, None), running.mean(x, None), rtol=1e-5, atol=1e-6)


def test_it_starts_with_fixed_time_scales():
    x = torch.zeros(1, 101, 6)
    x[:, 0] = 1
    mean = bypass_of(100.0).mean(x, None)
    kept = mean[0, 100] / mean[0, 0]
    scales = torch.logspace(math.log10(2), 2, 6)
    torch.testing.assert_close(kept, torch.exp(-100 / scales), rtol=1e-4, atol=1e-7)


def test_extreme_rates_give_finite_gradients():
    for value in (-60.0, 60.0):
        bypass = bypass_of()
        nn.init.constant_(bypass.rate.bias, value)
        bypass.mean(torch.randn(2, 40, 6), None).square().sum().backward()
        gradients = (bypass.log_rate.grad, bypass.rate.weight.grad, bypass.rate.bias.grad)
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_fixed_time_scales_keep_the_contract():
    check_component(DecayedMeanBypass, DecayedMeanBypass.Config(longest=30.0))
