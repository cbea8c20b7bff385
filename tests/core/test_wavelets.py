"""Wavelets: perfect reconstruction whatever the networks, the definitions of the specification, initial weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wavelet_core import HaarWavelet, LiftingWavelet, ModelShape, MultiBasisWavelet
from wavelet_core.lifting import FixedDelay, WaveletCrawl

WIDTH, LEVELS = 8, 3
SHAPE = ModelShape(width=WIDTH, levels=LEVELS)
ROOT = math.sqrt(2)


def lifting(dtype=torch.float32, randomize=True, **options):
    torch.manual_seed(0)
    wavelet = LiftingWavelet(LiftingWavelet.Config(**options), SHAPE).to(dtype)
    if randomize:
        for parameter in wavelet.parameters():
            nn.init.normal_(parameter, std=0.3)
    return wavelet.eval()


def shift(rows, offset):
    return torch.cat([torch.zeros_like(rows[:, :offset]), rows], dim=1)[:, : rows.shape[1]]


@settings(max_examples=40, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {"initialization": st.sampled_from(["haar", "zero", "random"]), "level_scaling": st.booleans()},
        optional={"crawl": st.sampled_from([1, 3, 5, 33]), "network": st.just("linear")},
    ),
    hidden_multiplier=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    length=st.integers(1, 20),
    scale=st.sampled_from([0.0, 0.01, 0.3, 2.0]),
)
def test_untouched_coefficients_give_the_input_back(options, hidden_multiplier, seed, length, scale):
    if "network" not in options:
        options = options | {"hidden_multiplier": hidden_multiplier, "dropout": 0.2}
    wavelet = lifting(torch.float64, randomize=False, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in wavelet.parameters():
            parameter += scale * torch.randn_like(parameter)
    rows = torch.randn(2, length, WIDTH, dtype=torch.float64)
    coefficients = wavelet.decompose(rows)
    assert coefficients.shape == (2, length, LEVELS + 1, WIDTH)
    bound = 1e-9 * max(1.0, coefficients.abs().max().item())
    torch.testing.assert_close(wavelet.reconstruct(coefficients), rows, atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconstruction_is_perfect_in_training_types(dtype):
    wavelet = lifting(dtype)
    rows = torch.randn(2, 30, WIDTH, dtype=dtype)
    bound = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(wavelet.reconstruct(wavelet.decompose(rows)), rows, atol=bound, rtol=bound)


def test_haar_gives_the_input_back():
    wavelet = HaarWavelet(HaarWavelet.Config(), SHAPE)
    rows = torch.randn(2, 30, WIDTH)
    torch.testing.assert_close(wavelet.reconstruct(wavelet.decompose(rows)), rows, atol=1e-5, rtol=0)


def test_lifting_follows_the_specification_level_by_level():
    wavelet = lifting(crawl=3, hidden_multiplier=2)
    approximation = torch.randn(2, 20, WIDTH)
    coefficients = wavelet.decompose(approximation).unbind(2)
    for level in range(LEVELS):
        first = max(1, 2**level - 1)
        weights = wavelet.delay.theta[level].softmax(0)
        past = sum(weights[j] * shift(approximation, first + j) for j in range(3))
        detail = (past - wavelet.predict[level](approximation)) / ROOT
        approximation = (approximation + wavelet.update[level](detail)) / ROOT
        torch.testing.assert_close(coefficients[LEVELS - level], detail, atol=1e-5, rtol=0)
    torch.testing.assert_close(coefficients[0], approximation, atol=1e-5, rtol=0)


def test_haar_follows_the_specification_level_by_level():
    approximation = torch.randn(2, 20, WIDTH)
    coefficients = HaarWavelet(HaarWavelet.Config(), SHAPE).decompose(approximation).unbind(2)
    for level in range(LEVELS):
        past = shift(approximation, 2**level)
        torch.testing.assert_close(coefficients[LEVELS - level], (approximation - past) / ROOT)
        approximation = (approximation + past) / ROOT
    torch.testing.assert_close(coefficients[0], approximation)


def test_untied_reconstruction_uses_its_own_update_networks():
    wavelet = lifting(untied_reconstruction=True)
    coefficients = wavelet.decompose(torch.randn(2, 9, WIDTH))
    before = wavelet.reconstruct(coefficients)
    for parameter in [*wavelet.update.parameters(), *wavelet.predict.parameters()]:
        nn.init.zeros_(parameter)
    torch.testing.assert_close(wavelet.reconstruct(coefficients), before)
    for parameter in wavelet.reconstruction_update.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(wavelet.reconstruct(coefficients), coefficients[:, :, 0] * ROOT**LEVELS)


@pytest.mark.parametrize("size", [1, 3, 5, 33])
def test_a_crawl_blends_consecutive_look_backs_around_the_dyadic_one(size):
    crawl = WaveletCrawl(6, size)
    rows = torch.randn(1, 80, WIDTH)
    for level in range(6):
        first = max(1, 2**level - size // 2)
        assert crawl.theta[level, 2**level - first] == 5 and crawl.theta[level].sum() == 5
        weights = crawl.theta[level].softmax(0)
        expected = sum(weights[j] * shift(rows, first + j) for j in range(size))
        torch.testing.assert_close(crawl(rows, level), expected, atol=1e-6, rtol=1e-5)


def test_a_crawl_of_one_is_the_fixed_delay():
    rows = torch.randn(1, 20, WIDTH)
    for level in range(LEVELS):
        torch.testing.assert_close(WaveletCrawl(LEVELS, 1)(rows, level), FixedDelay()(rows, level))


@pytest.mark.parametrize("network", ["mlp", "linear"])
def test_haar_initialization_starts_at_identity_and_half(network):
    wavelet = lifting(randomize=False, network=network)
    identity = torch.eye(WIDTH)
    for networks, gain in ((wavelet.predict, 1.0), (wavelet.update, 0.5)):
        for net in networks:
            assert torch.equal(net.last.weight, gain * identity) and not net.last.bias.any()
            assert network == "linear" or torch.equal(net.first.weight, identity)


def test_haar_initialization_fills_extra_hidden_units_with_noise():
    net = lifting(randomize=False, hidden_multiplier=40).update[0]
    for square, rest in ((net.first.weight[:WIDTH], net.first.weight[WIDTH:]), (net.last.weight[:, :WIDTH].T, None)):
        assert torch.equal(square, torch.eye(WIDTH) * (0.5 if rest is None else 1.0))
    for extra in (net.first.weight[WIDTH:], net.last.weight[:, WIDTH:]):
        assert extra.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("initialization", "last"), [("zero", 0.0), ("random", 0.01)])
def test_other_initializations(initialization, last):
    wavelet = lifting(randomize=False, initialization=initialization)
    for net in [*wavelet.predict, *wavelet.update]:
        assert net.first.weight.std().item() == pytest.approx(0.01, rel=0.4)
        assert net.last.weight.std().item() == pytest.approx(last, rel=0.4)
        assert not net.first.bias.any() and not net.last.bias.any()


def test_level_scaling_divides_the_last_weights_by_the_level():
    plain, scaled = lifting(randomize=False), lifting(randomize=False, level_scaling=True)
    for level in range(LEVELS):
        for part in ("predict", "update"):
            expected = getattr(plain, part)[level].last.weight / (1 + 0.1 * level)
            torch.testing.assert_close(getattr(scaled, part)[level].last.weight, expected)


def test_a_shared_wavelet_has_its_own_reconstruction_in_every_block():
    first = lifting(untied_reconstruction=True)
    second = first.for_next_block()
    assert second.predict is first.predict and second.update is first.update
    assert second.reconstruction_update is not first.reconstruction_update
    tied = lifting()
    assert tied.for_next_block() is tied


def multi_basis(untied=False):
    torch.manual_seed(0)
    bases = [LiftingWavelet.Config(), LiftingWavelet.Config(crawl=3), LiftingWavelet.Config(initialization="random")]
    config = MultiBasisWavelet.Config(bases=bases, untied_reconstruction=untied)
    return MultiBasisWavelet(config, SHAPE)


def test_bases_are_blended_scale_by_scale():
    wavelet = multi_basis()
    for parameter in wavelet.parameters():
        nn.init.normal_(parameter, std=0.3)
    rows = torch.randn(2, 12, WIDTH)
    weights = wavelet.blend.softmax(0)
    coefficients = wavelet.decompose(rows)
    parts = torch.stack([basis.decompose(rows) for basis in wavelet.bases])
    for scale in range(LEVELS + 1):
        column = 0 if scale == 0 else LEVELS + 1 - scale  # column k + 1 weighs d_k; scales run coarse to fine
        expected = (weights[:, column, None, None, None] * parts[:, :, :, scale]).sum(0)
        torch.testing.assert_close(coefficients[:, :, scale], expected)
    rebuilt = torch.stack([basis.reconstruct(coefficients) for basis in wavelet.bases])
    torch.testing.assert_close(wavelet.reconstruct(coefficients), (weights[:, 0, None, None, None] * rebuilt).sum(0))


def test_the_first_basis_is_favoured_at_the_start():
    wavelet = multi_basis()
    assert torch.equal(wavelet.blend, torch.tensor([10.0, 0.0, 0.0])[:, None].expand(3, LEVELS + 1))
    rows = torch.randn(2, 12, WIDTH)
    torch.testing.assert_close(wavelet.decompose(rows), wavelet.bases[0].decompose(rows), atol=1e-2, rtol=1e-2)


def test_an_untied_blend_has_its_own_weights_for_reconstruction():
    wavelet = multi_basis(untied=True)
    assert wavelet.reconstruction_blend.shape == (3, 1)
    coefficients = torch.randn(1, 4, LEVELS + 1, WIDTH)
    before = wavelet.reconstruct(coefficients)
    nn.init.zeros_(wavelet.blend)
    assert torch.equal(wavelet.reconstruct(coefficients), before)
    nn.init.zeros_(wavelet.reconstruction_blend)
    assert not torch.allclose(wavelet.reconstruct(coefficients), before)


@pytest.mark.parametrize("crawl", [None, 3, 33])
def test_the_state_holds_just_as_many_rows_as_the_oldest_look_back(crawl):
    wavelet = lifting(crawl=crawl)
    state = wavelet.new_state(2, torch.device("cpu"), torch.float32)
    for level in range(LEVELS):
        size = crawl or 1
        oldest = max(1, 2**level - size // 2) + size - 1
        assert state[f"level{level}"].shape == (2, oldest, WIDTH)


def crawling(**options):
    torch.manual_seed(0)
    wavelet = LiftingWavelet(LiftingWavelet.Config(crawl=5, **options), ModelShape(width=8, levels=3))
    nn.init.normal_(wavelet.delay.theta)
    return wavelet


def test_a_selective_crawl_starts_as_the_plain_one():
    rows = torch.randn(2, 20, 8)
    selective, plain = crawling(crawl_groups=2), crawling()
    selective.delay.theta = plain.delay.theta
    for level in range(3):
        torch.testing.assert_close(selective.delay(rows, level), plain.delay(rows, level))


def test_a_selective_crawl_weighs_look_backs_by_what_it_reads():
    delay = crawling(crawl_groups=2).delay
    nn.init.normal_(delay.select[1].weight)
    rows = torch.randn(2, 20, 8)
    past = delay(rows, 1)
    for position in (0, 1, 3, 19):
        scores = delay.theta[1] + (delay.select[1].weight @ rows[1, position]).view(2, 5)
        wanted = torch.zeros(2, 4)
        for place in range(5):
            if position - 1 - place >= 0:  # level 1 looks 1 to 5 positions back
                wanted += scores.softmax(-1)[:, place, None] * rows[1, position - 1 - place].view(2, 4)
        torch.testing.assert_close(past[1, position], wanted.flatten())


def test_a_selective_crawl_has_right_gradients():
    delay = crawling(crawl_groups=2).delay.double()
    rows = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(delay.select[2].weight)
    assert torch.autograd.gradcheck(
        lambda rows, weight, theta: delay(rows, 2), (rows, delay.select[2].weight, delay.theta)
    )
