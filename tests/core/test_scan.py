"""The parallel scan against a loop over positions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core.scan import gated_scan


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 70), seed=st.integers(0, 2**16))
def test_the_scan_equals_a_loop_over_positions(length, seed):
    generator = torch.Generator().manual_seed(seed)
    gates = torch.rand(2, length, 3, generator=generator)
    inputs = torch.randn(2, length, 3, generator=generator)
    expected, previous = [], torch.zeros(2, 3)
    for position in range(length):
        previous = gates[:, position] * previous + inputs[:, position]
        expected.append(previous)
    torch.testing.assert_close(gated_scan(gates, inputs), torch.stack(expected, 1), atol=1e-5, rtol=1e-5)


def test_the_scan_takes_a_logarithmic_number_of_steps_and_has_right_gradients():
    gates = torch.rand(1, 9, 2, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated_scan, (gates, inputs))
    with torch.profiler.profile() as profile:
        gated_scan(torch.rand(1, 1024, 2), torch.randn(1, 1024, 2))
    assert sum(event.name == "aten::addcmul" for event in profile.events()) == 31 + 31 + 1


def test_one_gate_for_all_channels_gets_the_sum_of_their_gradients():
    gates = torch.rand(2, 9, 1, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated_scan, (gates, inputs))
