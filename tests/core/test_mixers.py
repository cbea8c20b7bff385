"""Mixers: the formula scale by scale, initial weights, parametrizations of the mixing matrix, depth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from wavelet_core import DeepGatedSpectralMixer, GatedSpectralMixer, ModelShape
from wavelet_core.generation.session import decoding_view
from wavelet_core.mixers import MixerBank
from wavelet_core.parametrizations import ExponentialMatrices, SpectralNormMatrices

SHAPE = ModelShape(width=8, levels=2)
GATES = {"silu": F.silu, "sigmoid": torch.sigmoid, "gelu": F.gelu, "relu": F.relu}


def mixer_of(component=GatedSpectralMixer, randomize=True, shape=SHAPE, **options):
    torch.manual_seed(0)
    mixer = component(component.Config(**options), shape)
    if randomize:
        for parameter in mixer.parameters():
            nn.init.normal_(parameter, std=0.5)
    return mixer.eval()


def mix_one_scale(bank, index, z, gate_input, activation):
    """Section 5 of the specification for one scale, with plain matrix products."""
    if bank.narrow is not None:
        z, gate_input = z @ bank.narrow.weight[index].T, gate_input @ bank.narrow.weight[index].T
    out = z @ bank.matrix.matrix()[index].T
    if activation is not None:
        out = out * activation(gate_input @ bank.gate.weight[index].T)
    if bank.down is not None:
        out = out + (z @ bank.down.weight[index].T) @ bank.up.weight[index].T
    if bank.bias is not None:
        out = out + bank.bias[index]
    return out if bank.widen is None else out @ bank.widen.weight[index].T


@settings(max_examples=40, deadline=None)
@given(
    widths=st.none() | st.lists(st.sampled_from([0.05, 0.25, 0.5, 1.0, 1.5]), min_size=3, max_size=3),
    rank=st.integers(0, 3),
    gate=st.sampled_from([None, *GATES]),
    routing=st.booleans(),
)
def test_scales_of_equal_width_together_equal_each_scale_alone(widths, rank, gate, routing):
    mixer = mixer_of(widths=widths, rank=rank, gate=gate, routing=routing)
    z = torch.randn(2, 5, 3, 8)
    gates = torch.einsum("rs,btsp->btrp", mixer.routing.mix.weight, z) if routing else z
    expected = torch.empty_like(z)
    for members, bank in zip(mixer.members, mixer.banks, strict=True):
        for index, scale in enumerate(members):
            expected[:, :, scale] = mix_one_scale(bank, index, z[:, :, scale], gates[:, :, scale], GATES.get(gate))
    torch.testing.assert_close(mixer(z), expected, atol=1e-5, rtol=1e-4)


def test_every_scale_gets_the_width_that_is_asked_for():
    mixer = mixer_of(widths=[1, 0.5, 0.01])
    sizes = {
        scale: bank.gate.weight.shape[-1]
        for members, bank in zip(mixer.members, mixer.banks, strict=True)
        for scale in members
    }
    assert sizes == {0: 8, 1: 4, 2: 1}
    assert [bank.narrow is None for bank in mixer.banks] == [True, False, False]


def test_routing_feeds_gates_only_and_starts_at_the_identity():
    plain, routed = mixer_of(randomize=False), mixer_of(randomize=False, routing=True)
    assert torch.equal(routed.routing.mix.weight, torch.eye(3))
    z = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(routed(z), plain(z))
    ungated = mixer_of(routing=True, gate=None)
    before = ungated(z)
    nn.init.normal_(ungated.routing.mix.weight)
    assert torch.equal(ungated(z), before)


def test_initial_weights_follow_the_specification():
    shape = ModelShape(width=128, levels=2)
    mixer = mixer_of(randomize=False, shape=shape, widths=[1, 1, 0.5])
    full, half = mixer.banks
    for bank, width in ((full, 128), (half, 64)):
        noise = bank.matrix.weight - torch.eye(width)
        assert noise.std().item() == pytest.approx(1e-3, rel=0.05)
        assert bank.gate.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert bank.down.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert bank.up.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert half.narrow.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert half.widen.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    scaled = mixer_of(randomize=False, shape=shape, noise_scaling=True).banks[0].matrix.weight - torch.eye(128)
    assert scaled.std().item() == pytest.approx(1e-3 * 128**-0.5, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 2**16))
def test_exponential_matrices_are_invertible_with_positive_determinant(scale, seed):
    torch.manual_seed(seed)
    matrices = ExponentialMatrices(3, 6, noise=1e-3)
    torch.testing.assert_close(matrices.matrix(), torch.eye(6).expand(3, 6, 6), atol=0.01, rtol=0)
    with torch.no_grad():
        matrices.weight += scale * torch.randn(3, 6, 6)
    exact = matrices.weight.detach().double()
    torch.testing.assert_close(
        torch.linalg.det(matrices.matrix().double()), exact.diagonal(dim1=1, dim2=2).sum(1).exp(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        matrices.matrix() @ torch.matrix_exp(-matrices.weight), torch.eye(6).expand(3, 6, 6), atol=1e-3, rtol=0
    )


def test_spectral_norm_matrices_have_norm_one_after_enough_training_passes():
    torch.manual_seed(0)
    matrices = SpectralNormMatrices(4, 8, noise=1e-3)
    nn.init.normal_(matrices.weight)
    matrices.train()
    for _ in range(300):
        matrices.matrix()
    norms = torch.linalg.matrix_norm(matrices.eval().matrix(), ord=2)
    torch.testing.assert_close(norms, torch.ones(4), atol=1e-3, rtol=0)
    left = matrices.left.clone()
    matrices.matrix()
    assert torch.equal(matrices.left, left), "power iteration must rest in evaluation"


def test_spectral_norm_of_a_fresh_mixer_is_close_to_one():
    matrices = SpectralNormMatrices(4, 32, noise=1e-3)
    torch.testing.assert_close(torch.linalg.matrix_norm(matrices.matrix(), ord=2), torch.ones(4), atol=0.02, rtol=0)


def test_gradients_of_a_spectral_norm_see_the_division():
    torch.manual_seed(0)
    matrices = SpectralNormMatrices(2, 5, noise=0.5).double().eval()
    matrices.weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda _: matrices.matrix(), matrices.weight)


@pytest.mark.parametrize("parametrization", ["spectral_norm", "exponential"])
def test_frozen_matrices_are_computed_once(parametrization):
    mixer = mixer_of(parametrization=parametrization)
    z = torch.randn(1, 4, 3, 8)
    with torch.no_grad():
        before = mixer(z)
        view = decoding_view(mixer)
        view.banks[0].matrix._frozen = view.banks[0].matrix.compute()
        torch.testing.assert_close(view(z), before)
        nn.init.zeros_(mixer.banks[0].matrix.weight)
        torch.testing.assert_close(view(z), before)
        assert not torch.equal(mixer(z), before)


@pytest.mark.parametrize("stabilizers", [False, True])
@pytest.mark.parametrize("residuals", [False, True])
def test_deep_mixers_follow_the_specification_step_by_step(stabilizers, residuals):
    mixer = mixer_of(DeepGatedSpectralMixer, depth=3, stabilizers=stabilizers, residuals=residuals)
    z = torch.randn(2, 5, 3, 8)
    expected = z
    for step, bank in enumerate(mixer.banks):
        last = step == 2
        out = torch.empty_like(z)
        for scale in range(3):
            inner = expected[:, :, scale]
            if not last:
                norm = mixer.norms[step]
                inner = F.layer_norm(inner, (8,), norm.weight[scale], norm.bias[scale])
                inner = inner * mixer.beta[step] if stabilizers else inner
            out[:, :, scale] = mix_one_scale(bank, scale, inner, inner, F.silu)
        if stabilizers and not last:
            out = out * mixer.alpha[step]
        expected = expected + out if residuals else out
    torch.testing.assert_close(mixer(z), expected, atol=1e-4, rtol=1e-4)


def test_stabilizers_start_at_one_over_the_depth_with_less_noise_in_later_steps():
    shape = ModelShape(width=64, levels=2)
    mixer = mixer_of(DeepGatedSpectralMixer, randomize=False, shape=shape, depth=4, stabilizers=True)
    assert mixer.alpha.tolist() == mixer.beta.tolist() == [0.25] * 3
    for step, bank in enumerate(mixer.banks):
        assert (bank.matrix.weight - torch.eye(64)).std().item() == pytest.approx(1e-3 / (step + 1), rel=0.05)
    plain = mixer_of(DeepGatedSpectralMixer, depth=4)
    assert plain.alpha is None and plain.beta is None
    assert [bank.bias is None for bank in plain.banks] == [False, False, False, True]


def test_options_that_are_off_own_no_parameters():
    bank = MixerBank(GatedSpectralMixer.Config(gate=None, rank=0), range(3), 8, 8)
    assert [name for name, _ in bank.named_parameters()] == ["matrix.weight"]
