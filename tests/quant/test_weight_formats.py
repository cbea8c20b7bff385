"""Weight formats: what they store, that rows and products are those of the matrix, and what they refuse."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wavelet_core.config import parse
from wavelet_core.registry import build, registry
from wavelet_core.testing import check_component
from wavelet_quant.packed import PackedMatrix
from wavelet_quant.scale_stack import ScaleStack
from wavelet_quant.weight_format import StoredMatrix

CONFIGS = [
    {"kind": "dense"},
    {"kind": "dense", "dtype": "bfloat16"},
    {"kind": "int8"},
    *({"kind": kind, "group": group} for kind in ("int4", "int2") for group in (32, 64, 128)),
]
BITS = {"int8": 8, "int4": 4, "int2": 2}
TYPES = [torch.float32, torch.bfloat16, torch.float16]

configs = st.sampled_from(CONFIGS)


def make(config):
    component = registry.get("format", config["kind"])
    return component(parse(component.Config, config))


def numbers(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@st.composite
def weights(draw, stacked=False):
    config = draw(configs)
    width = draw(st.integers(1, 3)) * config["group"] if "group" in config else draw(st.integers(1, 150))
    shape = (*([draw(st.integers(1, 3))] if stacked else []), draw(st.integers(1, 40)), width)
    return config, numbers(*shape, seed=draw(st.integers(0, 99))).to(draw(st.sampled_from(TYPES)))


@pytest.mark.parametrize("name", ["dense", "int8", "int4", "int2"])
def test_built_in_formats_keep_the_contract(name):
    check_component(registry.get("format", name))


@settings(max_examples=60, deadline=None)
@given(weights(), st.lists(st.integers(0, 1000), max_size=6))
def test_rows_are_those_of_the_matrix(made, places):
    config, weight = made
    stored = make(config).store(weight)
    index = torch.tensor(places, dtype=torch.int64).remainder(len(weight)).view(1, -1)
    rows = stored.rows(index)
    assert rows.dtype is stored.matrix().dtype is stored.dtype is weight.dtype
    assert torch.equal(rows, stored.matrix()[index])


@settings(max_examples=60, deadline=None)
@given(weights(stacked=True), st.integers(1, 3), st.sampled_from(TYPES))
def test_products_are_those_of_the_matrix(made, rows, dtype):
    config, weight = made
    stored = make(config).store(weight)
    x = numbers(len(weight), rows, weight.shape[-1]).to(dtype)
    expected = x.double() @ stored.matrix(torch.float32).double().mT
    with torch.no_grad():
        out = stored(x)
    assert out.dtype is dtype and out.shape == expected.shape
    size = x.double().norm(dim=-1, keepdim=True) * stored.matrix(torch.float32).double().norm(dim=-1)[..., None, :]
    # The library rounds x to 16 bits: for so few channels by less than this.
    assert ((out.double() - expected).abs() <= (5e-4 + torch.finfo(dtype).eps) * size).all()


@settings(max_examples=30, deadline=None)
@given(weights(stacked=True), st.sampled_from(TYPES))
def test_another_type_changes_what_a_matrix_is_read_as_and_no_more(made, dtype):
    config, weight = made
    stored = make(config).store(weight)
    before = {name: tensor.clone() for name, tensor in stored.state_dict().items() if name != "read_as"}
    stored.to(dtype).to("cpu")
    assert stored.matrix().dtype is stored.dtype is dtype
    if config != {"kind": "dense"}:
        after = stored.state_dict()
        assert all(tensor.dtype is after[name].dtype and tensor.equal(after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
def test_no_weight_of_int8_is_off_by_more_than_half_its_scale(dtype):
    weight = (numbers(3, 7, 33) * torch.logspace(-4, 1, 7).unsqueeze(-1)).to(dtype)
    stored = make({"kind": "int8"}).store(weight)
    scale = weight.float().abs().amax(-1, keepdim=True) / 127
    assert ((stored.matrix(torch.float32) - weight.float()).abs() <= 0.5001 * scale).all()
    assert stored.matrix().dtype is dtype


def test_a_channel_of_zeros_stays_zero():
    weight = numbers(3, 64)
    weight[1] = 0
    for config in ({"kind": "int8"}, {"kind": "int4"}):
        assert not make(config).store(weight).matrix()[1].any()


@pytest.mark.parametrize("config", CONFIGS[2:], ids=str)
def test_the_stored_bits_are_those_of_the_format(config):
    stored = make(config).store(numbers(2, 256, 512))
    per_weight = 16 / config["group"] if "group" in config else 32 / 512
    assert stored.bits_per_weight == pytest.approx(BITS[config["kind"]] + per_weight)


def test_a_group_fits_where_it_divides_the_channels():
    assert make({"kind": "int4"}).fits(torch.Size([5, 128]))
    assert not make({"kind": "int4"}).fits(torch.Size([5, 96]))
    assert make({"kind": "int4", "group": 32}).fits(torch.Size([2, 5, 96]))
    assert make({"kind": "int8"}).fits(torch.Size([5, 1]))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_weights_that_are_not_finite_are_refused(config):
    weight = numbers(4, 128)
    weight[2, 5] = torch.inf
    with pytest.raises(ValueError, match=r"^has entries that are not finite"):
        make(config).store(weight)


def test_a_type_too_narrow_for_a_weight_is_refused():
    with pytest.raises(ValueError, match=r"^has entries that are not finite in torch\.float16"):
        make({"kind": "dense", "dtype": "float16"}).store(torch.full((2, 2), 1e6))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 4), st.integers(0, 99))
def test_a_stack_in_parts_is_the_stack(order, cut, seed):
    weight, x = numbers(5, 20, 64, seed=seed), numbers(5, 2, 64, seed=seed + 1)
    members = [order[:cut], order[cut:]]
    parts = [make(CONFIGS[place]).store(weight[own]) for place, own in zip((2, 4), members, strict=True)]
    stack = ScaleStack(parts, members)
    for own, part in zip(members, parts, strict=True):
        assert torch.equal(stack.matrix()[own], part.matrix())
    assert stack.shape == tuple(weight.shape)
    with torch.no_grad():
        torch.testing.assert_close(stack(x), x @ stack.matrix().mT, atol=1e-3, rtol=1e-3)


class Halves(StoredMatrix):
    """What a third party might bring: nothing but the matrix."""

    def __init__(self, weight):
        super().__init__(weight.shape, weight.dtype, weight.device)
        self.register_buffer("halves", (2 * weight.detach()).round().to(torch.int8))

    def matrix(self, dtype=None):
        return 0.5 * self.halves.to(dtype or self.dtype)


def test_a_format_that_only_knows_its_matrix_multiplies_and_gathers():
    stored = Halves(numbers(6, 8))
    x, bias = numbers(2, 3, 8), numbers(6)
    expected = F.gelu(F.linear(x, stored.matrix(), bias))
    torch.testing.assert_close(stored(x, bias, True), expected)
    assert torch.equal(stored.rows(torch.tensor([[1, 5]])), stored.matrix()[[1, 5]][None])
    assert copy.deepcopy(stored).bfloat16()(x.bfloat16()).dtype is torch.bfloat16


def test_components_are_built_by_name():
    assert isinstance(build("format", registry.get("format", "int4").Config()).store(numbers(2, 64)), PackedMatrix)
