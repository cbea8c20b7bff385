"""Short causal convolutions against their definition."""

import pytest
import torch

from wavelet_core.short_convolution import ShortConvolution


@pytest.mark.parametrize("residual", [False, True])
def test_it_is_its_definition_with_its_gradients(residual):
    torch.manual_seed(0)
    convolution = ShortConvolution(5, 3, residual).double()
    torch.nn.init.normal_(convolution.filters)
    x, worth = (torch.randn(2, 9, 5, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    rows = [
        (x[:, t] if residual else 0) + sum(convolution.filters[2 - j] * x[:, t - j] for j in range(min(3, t + 1)))
        for t in range(9)
    ]
    results = []
    for y in (convolution(x), torch.stack(rows, dim=1)):
        results.append((y, *torch.autograd.grad((y * worth).sum(), [x, convolution.filters])))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_fresh_residual_one_changes_nothing():
    x = torch.randn(2, 9, 5)
    assert torch.equal(ShortConvolution(5, 4, residual=True)(x), x)
