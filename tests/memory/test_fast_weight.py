"""Fast-weight product-key memory: its updates, and that chunking, batching and joining do not change them."""

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wavelet_core.config import ConfigurationError, ModelConfig, ModelShape, parse
from wavelet_core.state import State
from wavelet_core.testing import check_component
from wavelet_memory import FastWeightProductKeyMemory, ProductKeyMemory, learn_while_reading
from wavelet_memory.fast_weight_update import update_deltas

WIDTH = 16
CHUNK = 4


def memory_of(heads=2, chunk_size=CHUNK, learning_rate=20.0, inference_updates=True):
    torch.manual_seed(0)
    config = FastWeightProductKeyMemory.Config(
        num_keys=16,
        top_k=3,
        heads=heads,
        inference_updates=inference_updates,
        update_learning_rate=learning_rate,
        chunk_size=chunk_size,
    )
    memory = FastWeightProductKeyMemory(config, ModelShape(width=WIDTH, levels=2))
    with torch.no_grad():
        memory.keys_a.weight.normal_()
        memory.keys_b.weight.normal_()
    return memory


def state_of(memory, batch_size=1, dtype=torch.float32):
    return State(memory.new_state(batch_size, torch.device("cpu"), dtype), batch_size)


def feed(memory, q, state, lengths=None):
    lengths = lengths or [q.shape[1]]
    return torch.cat([memory(part, state.tree) for part in q.split(lengths, dim=1)], dim=1)


def read_with_dense_autograd(memory, q):
    """One text (T, C) read chunk by chunk, each followed by autograd through the whole table of deltas."""
    deltas = torch.zeros_like(memory.values.weight)
    reads = []
    for chunk in q.split(memory.chunk_size):
        row, weight = (address[0] for address in memory.address(chunk[None]))
        deltas = deltas.detach().requires_grad_()
        read = (weight.unsqueeze(-1) * (memory.values.weight.detach() + deltas)[row]).sum(1)
        reads.append(read.detach())
        if len(chunk) == memory.chunk_size:
            F.mse_loss(read[:-1], chunk[1:]).backward()
            deltas = deltas - memory.update_learning_rate * deltas.grad
    return torch.cat(reads), deltas.detach()


@pytest.mark.parametrize("heads", [1, 2])
def test_updates_equal_autograd_through_the_dense_table(heads):
    memory = memory_of(heads).double()
    q = torch.randn(2, 3 * CHUNK + 1, WIDTH, dtype=torch.float64)
    state = state_of(memory, 2, torch.float64)
    reads = feed(memory, q, state)
    for row in range(2):
        expected, deltas = read_with_dense_autograd(memory, q[row])
        torch.testing.assert_close(reads[row], expected, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(state.tree["deltas"][row], deltas, atol=1e-12, rtol=1e-9)
    assert (reads - memory(q)).abs().max() > 0.01, "the updates must matter for this test to mean anything"


def test_one_update_equals_autograd_at_the_size_of_the_benchmark():
    rows, reads, width, positions, learning_rate = 16384, 32, 512, 64, 500.0
    torch.manual_seed(0)
    query = torch.randn(positions, width)
    row = torch.randint(rows, (positions, reads))
    weight = torch.randn(positions, reads).softmax(-1)
    deltas = (0.02 * torch.randn(rows, width)).requires_grad_()
    read = F.embedding_bag(row, deltas, per_sample_weights=weight, mode="sum")
    F.mse_loss(read[:-1], query[1:]).backward()
    expected = (deltas - learning_rate * deltas.grad).detach()
    updated = deltas.detach().clone()
    update_deltas(updated, query, read.detach(), row, weight, learning_rate)
    assert (expected - deltas).abs().max() > 0.01
    assert (updated - expected).abs().max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 11), min_size=1, max_size=8))
def test_streaming_equals_parallel_in_any_chunking(lengths):
    memory = memory_of()
    q = torch.randn(2, sum(lengths), WIDTH, generator=torch.Generator().manual_seed(1))
    streaming, parallel = state_of(memory, 2), state_of(memory, 2)
    torch.testing.assert_close(feed(memory, q, streaming, lengths), feed(memory, q, parallel), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(streaming.tree["deltas"], parallel.tree["deltas"], atol=1e-5, rtol=1e-5)
    assert streaming.tree["count"].tolist() == [sum(lengths) % CHUNK] * 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3 * CHUNK), min_size=2, max_size=4), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_rows_that_read_different_lengths_do_not_disturb_each_other(prefixes, lengths):
    memory = memory_of()
    random = torch.Generator().manual_seed(2)
    texts = [torch.randn(1, prefix + sum(lengths), WIDTH, generator=random) for prefix in prefixes]
    expected = [feed(memory, text, state_of(memory)) for text in texts]
    states = [state_of(memory) for _ in texts]
    for text, prefix, state in zip(texts, prefixes, states, strict=True):
        feed(memory, text[:, :prefix], state)
    joined = State.join(states)
    batch = torch.cat([text[:, prefix:] for text, prefix in zip(texts, prefixes, strict=True)])
    out = feed(memory, batch, joined, lengths)
    for row, (prefix, alone) in enumerate(zip(prefixes, expected, strict=True)):
        torch.testing.assert_close(out[row], alone[0, prefix:], atol=1e-5, rtol=1e-5)


def test_selected_repeated_and_reset_rows_go_on_alone():
    memory = memory_of()
    q = torch.randn(3, 15, WIDTH)
    state = state_of(memory, 3)
    feed(memory, q[:, :10], state)
    expected = feed(memory, q[:, 10:], state.clone())
    torch.testing.assert_close(feed(memory, q[[2, 0], 10:], state[[2, 0]]), expected[[2, 0]])
    torch.testing.assert_close(
        feed(memory, q[:, 10:].repeat_interleave(2, 0), state.repeat(2)), expected.repeat_interleave(2, 0)
    )
    state.reset([1])
    after = feed(memory, q[:, 10:], state)
    torch.testing.assert_close(after[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(after[1:2], feed(memory, q[1:2, 10:], state_of(memory)))


def test_a_chunk_is_read_with_the_deltas_it_began_with():
    memory = memory_of()
    q = torch.randn(1, CHUNK + 1, WIDTH)
    read = feed(memory, q, state_of(memory), [1] * (CHUNK + 1))
    torch.testing.assert_close(read[:, :CHUNK], memory(q)[:, :CHUNK])
    assert (read[:, CHUNK:] - memory(q)[:, CHUNK:]).abs().max() > 0.01


def test_without_updates_it_is_a_product_key_memory():
    memory = memory_of(inference_updates=False)
    plain = ProductKeyMemory(ProductKeyMemory.Config(num_keys=16, top_k=3, heads=2), ModelShape(WIDTH, 2))
    plain.load_state_dict(memory.state_dict())
    q = torch.randn(2, 3 * CHUNK, WIDTH)
    assert memory.new_state(2, q.device, q.dtype) == {}
    torch.testing.assert_close(memory(q, {}), plain(q))


def test_learning_rate_and_chunk_size_change_the_updates():
    q = torch.randn(1, 6 * CHUNK, WIDTH, generator=torch.Generator().manual_seed(3))

    def deltas(**options):
        memory = memory_of(**options)
        state = state_of(memory)
        feed(memory, q, state)
        return state.tree["deltas"]

    assert not deltas(learning_rate=0.0).any()
    assert (deltas(learning_rate=40.0) - deltas(learning_rate=20.0)).abs().max() > 0.01
    assert (deltas(chunk_size=2 * CHUNK) - deltas()).abs().max() > 0.01


def test_state_is_allocated_once():
    memory = memory_of()
    state = state_of(memory)
    before = state.nbytes
    pointers = [state.tree["deltas"].data_ptr(), state.tree["count"].data_ptr()]
    feed(memory, torch.randn(1, 5 * CHUNK, WIDTH), state, [1] * (5 * CHUNK))
    assert state.nbytes == before
    assert [state.tree["deltas"].data_ptr(), state.tree["count"].data_ptr()] == pointers


def test_16_bit_models_keep_small_steps():
    memory = memory_of(learning_rate=1e-4).bfloat16()
    state = state_of(memory, dtype=torch.bfloat16)
    state.tree["deltas"].fill_(1.0)
    out = feed(memory, torch.randn(1, CHUNK, WIDTH, dtype=torch.bfloat16), state)
    assert out.dtype == torch.bfloat16
    assert 0 < (state.tree["deltas"] - 1.0).abs().max() < 1e-4


@pytest.mark.parametrize("options", [{}, {"inference_updates": True, "chunk_size": 3, "heads": 2}])
def test_keeps_the_contract_of_a_memory(options):
    """Among others that it compiles without graph breaks and streams, updates included."""
    config = FastWeightProductKeyMemory.Config(**{"num_keys": 64, "top_k": 4, "update_learning_rate": 5.0} | options)
    check_component(FastWeightProductKeyMemory, config)


def test_gradients_flow_through_the_slow_values_with_a_state():
    memory = memory_of()
    q = torch.randn(2, 3 * CHUNK, WIDTH, requires_grad=True)
    feed(memory, q, state_of(memory, 2)).sum().backward()
    assert q.grad is not None and q.grad.any()
    assert all(parameter.grad is not None for parameter in memory.parameters())


@pytest.mark.parametrize(
    "fields",
    [{"chunk_size": 1}, {"chunk_size": 2**63 - 1}, {"update_learning_rate": -0.1}, {"update_learning_rate": inf}],
)
def test_refused_when_the_configuration_is_read(fields):
    (name,) = fields
    memory = {"kind": "fast_weight_product_key", **fields}
    with pytest.raises(ConfigurationError, match=rf"memories\[0\].*{name}"):
        parse(ModelConfig, {"vocabulary_size": 11, "width": 24, "memories": [memory]})


def test_a_finished_model_can_be_told_to_learn_while_it_reads():
    told, made = memory_of(inference_updates=False), memory_of(chunk_size=3, learning_rate=5.0)
    learn_while_reading(torch.nn.Sequential(told), 5.0, 3)
    q = torch.randn(1, 3 * CHUNK, WIDTH, generator=torch.Generator().manual_seed(3))
    reads = [feed(memory, q, state_of(memory)) for memory in (told, made)]
    assert torch.equal(*reads)


def test_learning_keeps_what_it_is_not_told():
    memory = memory_of(inference_updates=False)
    learn_while_reading(memory)
    assert (memory.inference_updates, memory.update_learning_rate, memory.chunk_size) == (True, 20.0, CHUNK)


@pytest.mark.parametrize(
    ("learning_rate", "chunk_size", "named"),
    [(None, 2**63 - 1, "chunk_size"), (None, 1, "chunk_size"), (-0.1, None, "update_learning_rate")],
)
def test_nonsense_to_learn_by_is_refused_and_changes_nothing(learning_rate, chunk_size, named):
    memory = memory_of(inference_updates=False)
    with pytest.raises(ConfigurationError, match=named):
        learn_while_reading(memory, learning_rate, chunk_size)
    assert (memory.inference_updates, memory.update_learning_rate, memory.chunk_size) == (False, 20.0, CHUNK)


def test_a_model_that_cannot_learn_is_refused():
    with pytest.raises(ConfigurationError, match="no fast_weight_product_key memory"):
        learn_while_reading(torch.nn.Linear(2, 2))
