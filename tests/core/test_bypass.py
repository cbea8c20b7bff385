"""Bypasses: the means by their definitions, in float32, and what they add to every scale."""

import pytest
import torch
from torch import nn

from wavelet_core import ExponentialMovingAverageBypass, ModelShape, RunningMeanBypass

SHAPE = ModelShape(width=6, levels=2)
BYPASSES = [RunningMeanBypass, ExponentialMovingAverageBypass]


def bypass_of(component, randomize=True):
    torch.manual_seed(0)
    bypass = component(component.Config(), SHAPE)
    if randomize:
        for parameter in bypass.parameters():
            nn.init.normal_(parameter)
    return bypass


def test_the_running_mean_is_the_mean_of_everything_so_far():
    x = torch.randn(2, 11, 6)
    mean = bypass_of(RunningMeanBypass).mean(x, None)
    for position in range(11):
        torch.testing.assert_close(mean[:, position], x[:, : position + 1].mean(1))


def test_the_moving_average_follows_its_gate():
    bypass = bypass_of(ExponentialMovingAverageBypass)
    x = torch.randn(2, 11, 6)
    average = bypass.mean(x, None)
    previous = torch.zeros(2, 6)
    for position in range(11):
        gate = torch.sigmoid(x[:, position] @ bypass.gate.weight.T + bypass.gate.bias)
        previous = gate * previous + (1 - gate) * x[:, position]
        torch.testing.assert_close(average[:, position], previous, atol=1e-6, rtol=1e-5)


def test_the_moving_average_forgets_half_at_the_start():
    x = torch.ones(1, 3, 6)
    average = bypass_of(ExponentialMovingAverageBypass, randomize=False).mean(x, None)
    torch.testing.assert_close(average[0, :, 0], torch.tensor([0.5, 0.75, 0.875]))


@pytest.mark.parametrize("component", BYPASSES)
def test_means_are_accumulated_in_float32(component):
    bypass = bypass_of(component, randomize=False).to(torch.bfloat16)
    x = (1 + torch.rand(1, 4000, 6)).bfloat16()
    exact = bypass_of(component, randomize=False).mean(x.float(), None)
    mean = bypass.mean(x, None)
    assert mean.dtype == torch.bfloat16
    torch.testing.assert_close(mean.float(), exact, atol=0, rtol=2**-8)
    state = bypass.new_state(1, torch.device("cpu"), torch.bfloat16)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state.values())
    streamed = torch.cat([bypass.mean(part, state) for part in x.split(500, 1)], dim=1)
    torch.testing.assert_close(streamed.float(), exact, atol=0, rtol=2**-8)


@pytest.mark.parametrize("component", BYPASSES)
def test_every_scale_gets_the_mean_and_the_previous_one_with_its_own_gain(component):
    bypass = bypass_of(component)
    x, previous = torch.randn(2, 7, 6), torch.randn(2, 7, 6)
    bias, mean = bypass(x, previous)
    expected = mean + previous @ bypass.cross_layer.weight.T
    for scale in range(3):
        torch.testing.assert_close(bias[:, :, scale], expected * bypass.gains[scale])
    alone, _ = bypass(x)
    torch.testing.assert_close(alone[:, :, 1], mean * bypass.gains[1])
    last = previous[:, -1:]
    torch.testing.assert_close(bypass(x, last)[0], bypass(x, last.expand(-1, 7, -1))[0])


@pytest.mark.parametrize("component", BYPASSES)
def test_a_fresh_bypass_adds_nothing(component):
    bypass = bypass_of(component, randomize=False)
    bias, _ = bypass(torch.randn(2, 7, 6))
    assert not bias.any()
    assert torch.equal(bypass.cross_layer.weight, torch.eye(6) / 2)


def test_the_running_mean_stays_right_far_into_a_text():
    bypass = bypass_of(RunningMeanBypass)
    state = bypass.new_state(1, torch.device("cpu"), torch.float32)
    state["sum"].fill_(2.0 * 10_000_000)
    state["count"].fill_(10_000_000)
    torch.testing.assert_close(bypass.mean(torch.full((1, 5, 6), 2.0), state), torch.full((1, 5, 6), 2.0))
    assert state["count"].item() == 10_000_005
