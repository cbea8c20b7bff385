"""Transforms over channels: orthonormal, inverted exactly, fast, and cheap to train through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from wavelet_core import ModelShape, WalshHadamard
from wavelet_core.kernels import use_kernel
from wavelet_core.transforms import DiscreteCosine, Hartley, Identity, LearnedButterfly

TRANSFORMS = [WalshHadamard, Identity, Hartley, DiscreteCosine, LearnedButterfly]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}


def transform_of(component, width, dtype=torch.float32):
    torch.manual_seed(0)
    shape = ModelShape(width=width, levels=2, padded_width=component.padded_width(width))
    transform = component(component.Config(), shape).to(dtype)
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter)
    return transform


def dense(transform, width):
    """The matrix whose rows are what the transform makes of the unit vectors."""
    with torch.no_grad():
        return transform(torch.eye(width, dtype=torch.float64))


def sylvester(size):
    """The orthonormal Hadamard matrix by its definition: entry (i, j) is the parity of the bits that i and j share."""
    index = torch.arange(size, dtype=torch.int16)
    parity = index[:, None] & index
    for half in (8, 4, 2, 1):
        parity = parity ^ (parity >> half)
    return (1 - 2 * (parity & 1)).double() * size**-0.5


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.integers(0, 12),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 2**16),
    batch=st.lists(st.integers(1, 3), max_size=3),
)
def test_walsh_hadamard_keeps_norms_and_undoes_itself(exponent, dtype, seed, batch):
    transform = transform_of(WalshHadamard, 1 << exponent, dtype)
    x = torch.randn(*batch, 1 << exponent, generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = transform(x)
    assert y.dtype == dtype and y.shape == x.shape
    bound = TOLERANCES[dtype]
    torch.testing.assert_close(transform(y), x, atol=bound * x.abs().max().item(), rtol=bound)
    torch.testing.assert_close(y.double().norm(dim=-1), x.double().norm(dim=-1), atol=0, rtol=bound)
    assert torch.equal(transform.inverse(y), transform(y))


@pytest.mark.parametrize("width", [1, 2, 8, 64, 512, 4096])
def test_walsh_hadamard_is_the_dense_product_in_the_order_of_sylvester(width):
    x = torch.randn(3, width, dtype=torch.float64)
    torch.testing.assert_close(transform_of(WalshHadamard, width)(x), x @ sylvester(width), atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_walsh_hadamard_of_a_unit_vector_is_exact(dtype):
    width = 1024
    transform = transform_of(WalshHadamard, width, dtype)
    unit = torch.zeros(width, dtype=dtype)
    unit[5] = 1
    assert torch.equal(transform(unit).double(), sylvester(width)[5])


@pytest.fixture
def torch_alone():
    """torch computes everything: what kernels compute is not counted."""
    use_kernel("torch")
    yield
    use_kernel(None)


def test_walsh_hadamard_needs_at_least_five_times_fewer_products_than_a_dense_one(torch_alone):
    width, rows = 2048, 7
    transform, x = transform_of(WalshHadamard, width), torch.randn(rows, width)
    with FlopCounterMode(display=False) as counter:
        transform(x)
    assert 0 < counter.get_total_flops() <= 2 * rows * width * width / 5


def saved_by(transform, x):
    """The elements that the backward pass keeps of the forward one."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        transform(x)
    return sum(kept)


def test_walsh_hadamard_keeps_nothing_for_its_backward_pass():
    x = torch.randn(4, 64, requires_grad=True)
    assert saved_by(lambda x: (2 * x).exp(), x) > 0
    assert saved_by(transform_of(WalshHadamard, 64), x) == 0


@pytest.mark.parametrize("component", TRANSFORMS)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_are_right_twice(component, direction):
    transform = transform_of(component, 16, torch.float64)
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    function = lambda x, *_: getattr(transform, direction)(x).sin()  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, *transform.parameters()))
    assert torch.autograd.gradgradcheck(function, (x, *transform.parameters()))


@settings(max_examples=25, deadline=None)
@given(component=st.sampled_from(TRANSFORMS), width=st.integers(1, 70), dtype=st.sampled_from(list(TOLERANCES)))
def test_transforms_are_orthonormal_and_inverted(component, width, dtype):
    padded = component.padded_width(width)
    transform = transform_of(component, width, dtype)
    x = torch.randn(5, padded).to(dtype)
    bound = max(1e-6, TOLERANCES[dtype])  # constants are held in float32
    torch.testing.assert_close(transform.inverse(transform(x)), x, atol=2 * bound, rtol=bound)
    if dtype == torch.float64:
        matrix = dense(transform, padded)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(padded, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("component", [Hartley, DiscreteCosine])
def test_trigonometric_transforms_follow_their_definitions(component):
    size = 12
    channel, frequency = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    if component is Hartley:
        angle = 2 * torch.pi * channel * frequency / size
        expected = (angle.cos() + angle.sin()) * size**-0.5
    else:
        expected = (torch.pi * (2 * channel + 1) * frequency / (2 * size)).cos() * (2 / size) ** 0.5
        expected[:, 0] = size**-0.5
    torch.testing.assert_close(dense(transform_of(component, size), size), expected, atol=1e-6, rtol=0)


def test_a_fresh_butterfly_is_the_identity_and_pairs_channels_by_powers_of_two():
    shape = ModelShape(width=8, levels=1)
    butterfly = LearnedButterfly(LearnedButterfly.Config(), shape)
    assert butterfly.angles.shape == (3, 4)
    x = torch.randn(2, 8)
    assert torch.equal(butterfly(x), x)
    for layer in range(3):
        with torch.no_grad():
            butterfly.angles.zero_()[layer] = 0.5
        partners = dense(butterfly, 8).abs() > 1e-9
        assert all(partners[i].nonzero().flatten().tolist() == sorted((i, i ^ (1 << layer))) for i in range(8))


@pytest.mark.parametrize(("component", "padded"), [(WalshHadamard, 32), (LearnedButterfly, 32), (Identity, 24)])
def test_only_transforms_that_need_a_power_of_two_pad_the_width(component, padded):
    assert component.padded_width(24) == padded


def test_walsh_hadamard_refuses_other_widths():
    with pytest.raises(ValueError, match="power of two, not 24"):
        WalshHadamard(WalshHadamard.Config(), ModelShape(width=24, levels=1, padded_width=24))


def test_constants_stay_out_of_checkpoints():
    for component in (WalshHadamard, DiscreteCosine):
        assert not transform_of(component, 16).state_dict()
