"""Gated delta memory: the rule in chunks is the rule by position, and the memory is its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.config import ModelConfig, ModelShape
from wavelet_core.registry import build
from wavelet_core.testing import check_component
from wavelet_memory import GatedDeltaMemory
from wavelet_memory.gated_delta_rule import gated_delta_rule, gated_delta_rule_by_position

WIDTH = 12
SHAPE = ModelShape(width=WIDTH, levels=2)
SMALL = {"heads": 2, "key_width": 4, "value_width": 6}
WITHOUT = {"convolution": None, "decay": False, "output_norm": False, "output_gate": False}


def arguments(length: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(2, 3, *sizes, generator=generator, dtype=torch.float64)

    q, k, v = normal(length, 5), F.normalize(normal(length, 5), dim=-1), normal(length, 4)
    drawn = (q, k, v, -normal(length).exp(), normal(length).sigmoid(), normal(5, 4))
    return [tensor.requires_grad_() for tensor in drawn]


@settings(max_examples=20, deadline=None)
@given(
    length=st.sampled_from([1, 2, 7, 31, 32, 33, 70]),
    chunk=st.sampled_from([1, 5, 16, 64]),
    together=st.sampled_from([1, 4, 6]),
    seed=st.integers(0, 1 << 30),
)
def test_chunks_give_the_numbers_and_gradients_of_the_rule_by_position(length, chunk, together, seed):
    tensors = arguments(length, seed)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wavelet_memory.gated_delta_rule.CACHED", together * length * min(chunk, length))
        for outputs in (gated_delta_rule(*tensors, chunk), gated_delta_rule_by_position(*tensors)):
            worth = sum((output * output.detach().cos()).sum() for output in outputs)
            results.append((*outputs, *torch.autograd.grad(worth, tensors)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, -40.0, -1e4])
def test_equal_keys_and_strong_decay_give_finite_numbers(decay):
    q, k, v = (torch.ones(1, 1, 70, 4) for _ in range(3))
    k = F.normalize(k, dim=-1)
    tensors = [q, k, v, torch.full((1, 1, 70), decay), torch.ones(1, 1, 70), torch.zeros(1, 1, 4, 4)]
    for tensor in tensors:
        tensor.requires_grad_()
    outputs, _ = gated_delta_rule(*tensors)
    torch.testing.assert_close(outputs, torch.full_like(outputs, 2.0))
    gradients = torch.autograd.grad(outputs.sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)


def by_definition(memory: GatedDeltaMemory, x: Tensor) -> Tensor:
    """One text (T, C), one head and one position at a time."""
    heads, keys, values = 2, 4, 6
    mapped = x @ memory.project.weight.T
    q, k, v, gate, strength, step = mapped.split([8, 8, 12, 12, 2, 2], dim=-1)
    qkv = torch.cat([q, k, v], dim=-1)
    rows = []
    for position in range(len(x)):
        taps = [memory.convolution.filters[3 - j] * qkv[position - j] for j in range(min(4, position + 1))]
        rows.append(F.silu(sum(taps)))
    q, k, v = torch.stack(rows).split([8, 8, 12], dim=-1)
    out = torch.zeros(len(x), heads * values)
    for head in range(heads):
        matrix = torch.zeros(keys, values)
        key_part, value_part = slice(keys * head, keys * (head + 1)), slice(values * head, values * (head + 1))
        for position in range(len(x)):
            step_size = F.softplus(step[position, head] + memory.step_bias[head])
            matrix = matrix * torch.exp(-memory.log_rate[head].exp() * step_size)
            key, query = (F.normalize(part[position, key_part], dim=0) for part in (k, q))
            correction = v[position, value_part] - matrix.T @ key
            matrix = matrix + strength[position, head].sigmoid() * torch.outer(key, correction)
            read = matrix.T @ query / keys**0.5
            out[position, value_part] = memory.gain * read / (read.square().mean() + 1e-5).sqrt()
    return (out * F.silu(gate)) @ memory.out.weight.T


def test_the_memory_is_its_definition():
    torch.manual_seed(0)
    memory = GatedDeltaMemory(GatedDeltaMemory.Config(zero_output=False, chunk_size=8, **SMALL), SHAPE)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter += torch.randn_like(parameter)
        x = torch.randn(1, 21, WIDTH)
        torch.testing.assert_close(memory(x)[0], by_definition(memory, x[0]), rtol=1e-4, atol=1e-4)


def test_it_keeps_the_contract_without_its_options():
    check_component(GatedDeltaMemory, GatedDeltaMemory.Config(**SMALL, **WITHOUT))


def test_the_gate_can_be_a_sigmoid():
    memory = GatedDeltaMemory(GatedDeltaMemory.Config(zero_output=False, gate_activation="sigmoid", **SMALL), SHAPE)
    x = torch.randn(1, 5, WIDTH)
    read: list[Tensor] = []
    memory.out.register_forward_pre_hook(lambda module, inputs: read.extend(inputs))
    memory(x)
    memory.gate = None
    memory(x)
    gate = memory.project(x).split(memory.sizes, dim=-1)[1]
    torch.testing.assert_close(read[0], read[1] * gate.sigmoid())


def test_a_memory_that_starts_as_induction_reads_what_followed_the_same_input():
    torch.manual_seed(0)
    sizes = {"heads": 1, "key_width": 64, "value_width": 16}
    options = {"start": "induction", "output_norm": False, "output_gate": False}
    memory = GatedDeltaMemory(GatedDeltaMemory.Config(**sizes, **options), ModelShape(width=64, levels=1))
    reads: list[Tensor] = []
    memory.out.register_forward_pre_hook(lambda module, inputs: reads.extend(inputs))
    x = torch.randn(1, 9, 64)
    x[0, 8] = x[0, 3]
    memory(x)
    values = F.silu(memory.project(x)[0, :, 128:144])
    similar = F.cosine_similarity(reads[0][0, 8:], values[:8])
    assert similar.argmax() == 4 and similar[4] > 0.6


def test_it_keeps_the_contract_when_it_starts_as_induction():
    options = {"start": "induction", "gate_activation": "sigmoid", "zero_output": False}
    check_component(GatedDeltaMemory, GatedDeltaMemory.Config(**SMALL, **options))


def test_induction_needs_a_convolution():
    with pytest.raises(ValueError, match="start=induction needs a convolution"):
        GatedDeltaMemory.Config(start="induction", convolution=None)


def test_a_fresh_memory_adds_nothing_and_learns():
    config = ModelConfig(width=WIDTH, memories=[{"kind": "gated_delta", **SMALL}])
    memory = build("memory", config.memories[0], config.shape)
    x = torch.randn(2, 9, WIDTH)
    assert not memory(x).any()
    memory(x).sum().backward()
    assert memory.out.weight.grad.any()


def test_what_a_row_keeps_does_not_depend_on_how_much_was_read():
    memory = GatedDeltaMemory(GatedDeltaMemory.Config(**SMALL), SHAPE)
    state = memory.new_state(1, torch.device("cpu"), torch.bfloat16)
    assert state["memory"].dtype == torch.float32 and state["memory"].shape == (1, 2, 4, 6)
