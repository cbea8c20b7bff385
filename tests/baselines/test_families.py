"""The families keep the contract of a model, and their fast forms are what they are defined as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_baselines.gated_delta_net import GatedDeltaNet
from wavelet_baselines.lstm import LSTM, LSTMBlock
from wavelet_baselines.mamba2 import Mamba2
from wavelet_baselines.state_space_duality import state_space, state_space_by_position
from wavelet_baselines.transformer import Attention, Transformer
from wavelet_core.generation import DecodingSession
from wavelet_core.state import leaves
from wavelet_core.testing import check_model
from wavelet_memory.gated_delta_rule import gated_delta_rule, gated_delta_rule_by_position
from wavelet_quant import quantize

SMALL = {"width": 16, "layers": 2, "zero_outputs": False, "head_std": 0.02}
CONFIGURATIONS = {
    "transformer": Transformer.Config(heads=2, **SMALL),
    "transformer, short reach": Transformer.Config(heads=2, capacity=9, activation="swiglu", **SMALL),
    "transformer, GPT-2's parts": Transformer.Config(
        heads=2, qk_norm=False, activation="gelu", tied_embedding=True, **SMALL
    ),
    "mamba2": Mamba2.Config(head_width=8, state_width=4, **SMALL),
    "gated delta net": GatedDeltaNet.Config(heads=2, key_width=4, value_width=6, **SMALL),
    "lstm": LSTM.Config(cells=12, **SMALL),
}
FAMILIES = {
    Transformer.Config: Transformer,
    Mamba2.Config: Mamba2,
    GatedDeltaNet.Config: GatedDeltaNet,
    LSTM.Config: LSTM,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_families_are_language_models(name):
    config = CONFIGURATIONS[name]
    check_model(FAMILIES[type(config)], config)


@pytest.mark.parametrize("recipe", [None, "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.inference_mode()
def test_replayed_steps_are_the_same_bit_by_bit(name, recipe):
    config = CONFIGURATIONS[name].model_copy(update={"vocabulary_size": 29, "width": 32})
    model = FAMILIES[type(config)](config).eval()
    model = model if recipe is None else quantize(model, recipe)
    session, plain = DecodingSession(model), DecodingSession(model, replay=False)
    state, other = session.new_state(2), plain.new_state(2)
    for tokens in torch.randint(29, (20, 2)):
        assert torch.equal(session.next_logits(tokens, state), plain.next_logits(tokens, other))
    assert session.is_replayed(state)
    for (_, own), (_, others) in zip(leaves(state.tree), leaves(other.tree), strict=True):
        assert torch.equal(own, others)


lengths = st.sampled_from([1, 2, 7, 63, 64, 65, 130])


@settings(max_examples=20, deadline=None)
@given(length=lengths, chunk=st.sampled_from([1, 5, 16, 64]), seed=st.integers(0, 1 << 30))
def test_the_gated_delta_rule_in_chunks_is_the_rule_by_position(length, chunk, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(2, 3, *sizes, generator=generator)

    q, k, v = normal(length, 5), torch.nn.functional.normalize(normal(length, 5), dim=-1), normal(length, 4)
    log_decay, strength = -normal(length).exp(), normal(length).sigmoid()
    arguments = (q, k, v, log_decay, strength, normal(5, 4))
    for fast, slow in zip(gated_delta_rule(*arguments, chunk), gated_delta_rule_by_position(*arguments), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(length=lengths, chunk=st.sampled_from([1, 5, 16, 64]), seed=st.integers(0, 1 << 30))
def test_the_state_space_in_chunks_is_the_recurrence(length, chunk, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(2, *sizes, generator=generator)

    arguments = (normal(length, 3, 4), -normal(length, 3).exp(), normal(length, 5), normal(length, 5), normal(3, 4, 5))
    for fast, slow in zip(state_space(*arguments, chunk), state_space_by_position(*arguments), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_strong_decay_gives_finite_gradients():
    q, k, v = (torch.randn(1, 1, 70, 4, requires_grad=True) for _ in range(3))
    log_decay = torch.full((1, 1, 70), -40.0, requires_grad=True)
    out, _ = gated_delta_rule(q, k, v, log_decay, torch.ones(1, 1, 70), torch.zeros(1, 1, 4, 4))
    x = torch.randn(1, 70, 1, 4, requires_grad=True)
    other, _ = state_space(x, log_decay.mT, q[0], k[0], torch.zeros(1, 1, 4, 4))
    (out.sum() + other.sum()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in (q, k, v, log_decay, x))


def by_position(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """Attention as it is defined, one query and one head at a time."""
    width, heads = attention.head_width, attention.heads
    rows = []
    for row in attention.project(x):
        q, k, v = row.view(len(row), 3, heads, width).unbind(1)
        out = torch.zeros(len(row), heads, width)
        for position in range(len(row)):
            first = max(0, position - attention.capacity + 1)
            for head in range(heads):
                keys = torch.stack([turned(normed(k[other, head]), other) for other in range(first, position + 1)])
                weights = (keys @ turned(normed(q[position, head]), position) / width**0.5).softmax(0)
                out[position, head] = weights @ v[first : position + 1, head]
        rows.append(out.flatten(1))
    return attention.out(torch.stack(rows))


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt()


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """Channels i and i + D / 2 as a complex number, turned by the position's angle."""
    half = len(x) // 2
    angles = torch.tensor([position * 10_000.0 ** (-index / half) for index in range(half)])
    number = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half), angles)
    return torch.cat([number.real, number.imag])


@pytest.mark.parametrize("capacity", [5, 40])
def test_attention_is_its_definition(capacity):
    torch.manual_seed(0)
    attention = Attention(Transformer.Config(heads=2, capacity=capacity, **SMALL))
    x = torch.randn(2, 17, 16)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), by_position(attention, x), rtol=1e-4, atol=1e-5)


def test_the_fused_recurrence_is_torchs_lstm_and_the_loop():
    torch.manual_seed(0)
    block = LSTMBlock(CONFIGURATIONS["lstm"])
    torch.nn.init.normal_(block.input.bias)
    reference = torch.nn.LSTM(16, 12, batch_first=True)
    with torch.no_grad():
        for name, tensor in (
            ("weight_ih_l0", block.input.weight),
            ("weight_hh_l0", block.recurrent.weight),
            ("bias_ih_l0", block.input.bias),
            ("bias_hh_l0", torch.zeros(48)),
        ):
            getattr(reference, name).copy_(tensor)
        x, h, c = torch.randn(2, 9, 16), torch.zeros(2, 12), torch.zeros(2, 12)
        wanted, _ = reference(x)
        for outputs, _, _ in (block._fused(x, h, c), block._by_position(x, h, c)):
            torch.testing.assert_close(outputs, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_families_train_in_bfloat16_and_quantize(name):
    config = CONFIGURATIONS[name].with_vocabulary(29)
    torch.manual_seed(0)
    model = FAMILIES[type(config)](config)
    tokens = torch.randint(29, (2, 33))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    exact = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(exact.item(), abs=0.05)
    model.eval()
    quantize(model, "int8")
    with torch.no_grad():
        assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(exact.item(), abs=0.05)
        state = model.new_state(2)
        pieces = [model(piece, state) for piece in tokens.split(5, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=1e-2, atol=1e-2)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"heads=5.*width=16"):
        Transformer.Config(width=16, heads=5)
    with pytest.raises(ValueError, match=r"head_width=64.*32"):
        Mamba2.Config(width=16)
