"""Rounding with regard to the inputs: never worse than to nearest, whatever the Hessian."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_quant import gptq
from wavelet_quant.clipping import best_scales, nearest_codes
from wavelet_quant.gptq import quantize_with_hessian
from wavelet_quant.packed import PackedMatrix


def numbers(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def inputs(width, count=300, seed=0):
    """Inputs whose channels depend on each other and are of different size."""
    x = numbers(count, width, seed=seed) @ numbers(width, width, seed=seed + 1)
    return x * numbers(width, seed=seed + 2).exp()


def hessian(x):
    return (x.mT @ x / x.shape[-2]).unsqueeze(-3)


def matrix(codes, scales, bits):
    return PackedMatrix(codes, scales, bits).matrix()


def loss(weight, other, hessian):
    """What the rows do to the products, block by block of the Hessian."""
    error = (weight - other).double()
    parts = error.split(hessian.shape[-1], -1)
    return sum(
        (part * (part @ h[: part.shape[-1], : part.shape[-1]].double())).sum(-1)
        for part, h in zip(parts, hessian, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(4, 32), (4, 64), (2, 32), (4, None), (8, None)]),
    st.sampled_from([1, 2, 20, 300]),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
def test_no_row_is_worse_than_rounded_to_nearest(format, count, scale_type, seed):
    bits, group = format
    weight, h = numbers(6, 192, seed=seed), hessian(inputs(192, count, seed))
    codes, scales = quantize_with_hessian(weight, h, bits, group, scale_type)
    assert scales.dtype is scale_type
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq._Rounding, "improve", lambda *_: None)
        nearest = matrix(*quantize_with_hessian(weight, h, bits, group, scale_type), bits)
    plain = loss(weight, nearest, h)
    assert (loss(weight, matrix(codes, scales, bits), h) <= plain * (1 + 1e-3) + 1e-5 * plain.max()).all()


@pytest.mark.parametrize(("bits", "share"), [(4, 0.5), (2, 0.6)])
def test_it_is_much_better_where_inputs_depend_on_each_other(bits, share):
    weight, h = numbers(40, 192), hessian(inputs(192))
    scales = best_scales(weight, bits, 64, h.diagonal(dim1=-2, dim2=-1)[0])
    plain = loss(weight, matrix(nearest_codes(weight, scales, bits), scales, bits), h).sum()
    assert loss(weight, matrix(*quantize_with_hessian(weight, h, bits, 64), bits), h).sum() < share * plain


@pytest.mark.parametrize("bits", [4, 2])
def test_independent_inputs_of_one_size_leave_every_code_the_nearest(bits):
    weight = numbers(5, 128)
    codes, scales = quantize_with_hessian(weight, torch.eye(128)[None], bits, 32)
    assert (codes != nearest_codes(weight, scales, bits)).sum() <= 2  # those halfway between two


@pytest.mark.parametrize("bits", [4, 2])
def test_a_hessian_of_zeros_is_rounding_to_nearest(bits):
    weight = numbers(5, 128)
    codes, scales = quantize_with_hessian(weight, torch.zeros(1, 128, 128), bits, 32)
    assert torch.equal(scales, best_scales(weight, bits, 32))
    assert torch.equal(codes, nearest_codes(weight, scales, bits))


def test_channels_without_inputs_are_rounded_to_nearest_and_change_nothing_else():
    weight, x = numbers(5, 128), inputs(128)
    x[:, 64:] = 0
    codes, scales = quantize_with_hessian(weight, hessian(x), 4, 64)
    assert torch.equal(codes[:, 64:], nearest_codes(weight, scales, 4)[:, 64:])
    assert torch.equal(scales[:, 1:], best_scales(weight[:, 64:], 4, 64))
    weight[:, 64:] *= 2
    again, _ = quantize_with_hessian(weight, hessian(x), 4, 64)
    assert torch.equal(again[:, :64], codes[:, :64])


def test_equal_inputs_in_all_channels_need_more_damping_than_usual(monkeypatch):
    failed = torch.tensor(1)
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda h: (h, failed) if h.diagonal().mean() < 1.05 else real(h))
    weight = numbers(3, 64)
    codes, scales = quantize_with_hessian(weight, torch.ones(1, 64, 64), 4, 64)
    difference = weight - matrix(codes, scales, 4)
    assert difference.sum(-1).abs().max() < scales.abs().max()


def test_a_stack_is_its_matrices_one_by_one():
    weight, h = numbers(3, 4, 64), torch.stack([hessian(inputs(64, seed=seed)) for seed in range(3)])
    together = quantize_with_hessian(weight, h, 4, 32)
    for index in range(3):
        alone = quantize_with_hessian(weight[index], h[index], 4, 32)
        assert all(torch.equal(part[index], own) for part, own in zip(together, alone, strict=True))


def test_blocks_are_rounded_one_by_one():
    weight, x = numbers(4, 192), inputs(192)
    first, second = hessian(x[:, :128]), torch.zeros(1, 128, 128)
    second[:, :64, :64] = hessian(x[:, 128:]) * 3
    codes, scales = quantize_with_hessian(weight, torch.cat([first, second]), 4, 64)
    for channels, h in ((slice(0, 128), first), (slice(128, 192), second[:, :64, :64])):
        importance = h.diagonal(dim1=-2, dim2=-1)[0]
        own = loss(weight[:, channels], matrix(codes, scales, 4)[:, channels], h)
        plain = best_scales(weight[:, channels], 4, 64, importance)
        nearest = matrix(nearest_codes(weight[:, channels], plain, 4), plain, 4)
        assert own.sum() < 0.8 * loss(weight[:, channels], nearest, h).sum()


def test_a_scale_for_several_blocks_stays_as_it_is():
    weight = numbers(4, 192)
    h = torch.stack([hessian(inputs(96))[0], hessian(inputs(96, seed=9))[0]])
    codes, scales = quantize_with_hessian(weight, h, 4)
    importance = h.diagonal(dim1=-2, dim2=-1).flatten()
    assert torch.equal(scales, best_scales(weight, 4, None, importance + 0.01 * importance.mean()))
    assert (
        loss(weight, matrix(codes, scales, 4), h).sum()
        < 0.8 * loss(weight, matrix(nearest_codes(weight, scales, 4), scales, 4), h).sum()
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.full((2, 64), torch.inf)}, "entries that are not finite, which"),
        ({"hessian": torch.full((1, 64, 64), torch.nan)}, "Hessian with entries that are not finite"),
        ({"hessian": -torch.eye(64)[None]}, "negative ones on the diagonal"),
        ({"hessian": torch.ones(1, 64, 64) * -5 + 6 * torch.eye(64)}, "not positive semidefinite"),
        ({"hessian": torch.eye(32)[None]}, "does not fit"),
        ({"hessian": torch.eye(64)}, "does not fit"),
        ({"hessian": torch.eye(64).expand(2, 64, 64)}, "does not fit"),
        ({"hessian": torch.eye(64).expand(2, 1, 64, 64)}, "does not fit"),
    ],
)
def test_what_is_no_weight_and_no_hessian_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        quantize_with_hessian(**{"weight": numbers(2, 64), "hessian": torch.eye(64)[None], "bits": 4, **change})
