"""The search for scales: never worse than the greatest entry at the end of the range."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_quant.clipping import best_scales, nearest_codes
from wavelet_quant.packed import OFFSETS, PackedMatrix


def numbers(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def rounded(weight, scales, bits):
    return PackedMatrix(nearest_codes(weight, scales, bits), scales, bits).matrix()


def error(weight, other, importance=1.0):
    return ((weight - other).square() * importance).sum(-1)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(8, None), (4, None), (4, 32), (4, 64), (2, 32), (2, 64)]),
    st.sampled_from([(5, 64), (2, 3, 128)]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.booleans(),
    st.integers(0, 99),
)
def test_no_group_is_worse_than_without_a_search(format, shape, scale_type, weighed, seed):
    bits, group = format
    weight = numbers(*shape, seed=seed) ** 3
    importance = numbers(*shape[:-2], shape[-1], seed=seed + 1).square() if weighed else torch.ones(shape[-1])
    scales = best_scales(weight, bits, group, importance if weighed else None, scale_type)
    assert scales.dtype is scale_type
    assert scales.shape == (*shape[:-1], shape[-1] // (group or shape[-1]))
    greatest = weight.unflatten(-1, (scales.shape[-1], -1)).abs().amax(-1)
    plain = (greatest / {8: 127, 4: 7, 2: 1.5}[bits]).to(scale_type)
    counts = importance.unsqueeze(-2).expand(shape).unflatten(-1, (scales.shape[-1], -1))
    searched, unsearched = (
        error(weight.unflatten(-1, (scales.shape[-1], -1)), rounded(weight, own, bits).view(counts.shape), counts)
        for own in (scales, plain)
    )
    assert (searched <= unsearched * 1.0001).all()


def test_the_search_helps():
    weight = numbers(64, 256)
    for bits, share in ((4, 0.75), (2, 0.5)):
        plain = (weight.unflatten(-1, (-1, 64)).abs().amax(-1) / {4: 7, 2: 1.5}[bits]).half()
        found = error(weight, rounded(weight, best_scales(weight, bits, 64), bits)).sum()
        assert found < share * error(weight, rounded(weight, plain, bits)).sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_a_scale_turns_the_longer_side_to_the_greatest_entry(sign):
    weight = sign * torch.arange(9.0).repeat(1, 8)[:, :64]
    scales = best_scales(weight, 4, 64)
    assert scales.item() == -sign
    assert torch.equal(rounded(weight, scales, 4), weight)


@pytest.mark.parametrize("bits", OFFSETS)
def test_zeros_and_numbers_too_small_for_a_scale(bits):
    weight = torch.zeros(2, 64)
    weight[1] = 1e-12
    assert torch.equal(rounded(weight, best_scales(weight, bits, 64), bits), torch.zeros(2, 64))


def test_importance_decides_what_is_clipped():
    weight = torch.ones(1, 64) / 3
    weight[0, 0] = 10
    first, rest = torch.zeros(64), torch.ones(64)
    first[0], rest[0] = 1, 0
    assert error(weight, rounded(weight, best_scales(weight, 2, 64, first), 2))[0] > 1
    assert error(weight, rounded(weight, best_scales(weight, 2, 64, rest), 2), rest)[0] < 1


@pytest.mark.parametrize(
    ("entry", "scale_type", "says"),
    [
        (torch.nan, torch.float16, "not finite"),
        (-torch.inf, torch.float32, "not finite"),
        (-1e9, torch.float16, "up to 1e.09, too large for scales in torch.float16"),
    ],
)
def test_what_no_scale_can_stand_for_is_refused(entry, scale_type, says):
    weight = numbers(3, 64)
    weight[1, 7] = entry
    with pytest.raises(ValueError, match=says):
        best_scales(weight, 4, 64, scale_type=scale_type)
