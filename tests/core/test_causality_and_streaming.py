"""Whole models of every architecture: causal, and the same in any chunking as in one pass."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core.state import State, leaves

LENGTH = 2000


def read(model, tokens, lengths, state=None):
    state = model.new_state(len(tokens)) if state is None else state
    with torch.inference_mode():
        return torch.cat([model(chunk, state) for chunk in tokens.split(lengths, 1)], dim=1)


def chunking(length, cuts):
    """Random cuts, with a run of single tokens somewhere."""
    start = cuts.randrange(length - 12)
    places = sorted({0, length, *range(start, start + 12), *cuts.sample(range(1, length), 8)})
    return [end - begin for begin, end in itertools.pairwise(places)]


@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_changing_a_token_changes_no_logit_before_it(make_model, architecture, tokens, data):
    model = make_model(architecture)
    place = data.draw(st.integers(1, tokens.shape[1] - 1))
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + data.draw(st.integers(1, 28))) % 29
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :place], before[:, :place], atol=1e-6, rtol=0)
    assert not torch.equal(after[:, place], before[:, place])


def test_streaming_matches_parallel(make_model, architecture):
    model = make_model(architecture)
    tokens = torch.randint(29, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    streamed = read(model, tokens, chunking(LENGTH, random.Random(1)))
    torch.testing.assert_close(streamed, read(model, tokens, [LENGTH]), atol=1e-4, rtol=0)


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(["headline", "ema_bypass", "haar", "multi_basis", "fast_weight_updates_in_loops"]),
    lengths=st.lists(st.integers(1, 40) | st.just(1), min_size=1, max_size=20),
    seed=st.integers(0, 2**16),
)
def test_streaming_matches_parallel_in_any_chunking(make_model, architectures, name, lengths, seed):
    model = make_model(architectures[name], seed)
    tokens = torch.randint(29, (2, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(read(model, tokens, lengths), read(model, tokens, [sum(lengths)]), atol=1e-4, rtol=0)


def test_a_state_is_only_needed_for_what_learns_while_reading(make_model, architecture, tokens):
    model = make_model(architecture)
    with torch.no_grad():
        same = torch.allclose(model(tokens), model(tokens, model.new_state(2)), atol=1e-5)
    assert same != any(name.endswith("deltas") for name, _ in leaves(model.new_state(1).tree))


def test_headline_streams_one_token_at_a_time(make_model, headline):
    model = make_model(headline)
    tokens = torch.randint(29, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(read(model, tokens, [1] * LENGTH), read(model, tokens, [LENGTH]), atol=1e-4, rtol=0)


def test_rows_that_have_read_different_lengths_go_on_together(make_model, architecture, tokens):
    model = make_model(architecture)
    whole = read(model, tokens, [48])
    states = []
    for row, length in enumerate((9, 21)):
        states.append(model.new_state(1))
        read(model, tokens[row : row + 1, :length], [length], states[row])
    state = State.join([states[1], states[0], states[1]])[[1, 0, 2]].clone()
    following = torch.stack([tokens[0, 9:25], tokens[1, 21:37], tokens[1, 21:37]])
    expected = torch.stack([whole[0, 9:25], whole[1, 21:37], whole[1, 21:37]])
    torch.testing.assert_close(read(model, following, [1, 7, 8], state), expected, atol=1e-4, rtol=0)


def test_reading_keeps_a_state_in_place_and_at_its_size(make_model, architecture, tokens):
    model = make_model(architecture)
    state = model.new_state(2)
    assert not any(tensor.any() for _, tensor in leaves(state.tree))
    before = {name: (tensor.data_ptr(), tensor.shape) for name, tensor in leaves(state.tree)}
    held = state.nbytes
    read(model, tokens[:, :47], [1, 30, 16], state)
    assert {name: (tensor.data_ptr(), tensor.shape) for name, tensor in leaves(state.tree)} == before
    assert state.nbytes == held
    assert all(tensor.any() for name, tensor in leaves(state.tree) if "carried_mean" not in name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_streams_in_other_types(make_model, headline, tokens, dtype):
    model = make_model(headline).to(dtype)
    logits = read(model, tokens, [20, 1, 27])
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, read(model, tokens, [48]), atol=0.3 if dtype == torch.bfloat16 else 1e-7, rtol=0)


def test_streams_under_autocast(make_model, headline, tokens):
    model = make_model(headline)
    with torch.autocast("cpu", torch.bfloat16):
        logits, parallel = read(model, tokens, [20, 1, 27]), read(model, tokens, [48])
    torch.testing.assert_close(logits.float(), parallel.float(), atol=0.3, rtol=0)


def test_a_long_text_does_not_change_what_a_reset_row_reads(make_model, headline, tokens):
    model = make_model(headline)
    state = model.new_state(2)
    read(model, tokens, [48], state)
    state.reset([1])
    again = read(model, tokens[1:].expand(2, -1), [48], state)
    expected = read(model, tokens[1:], [48])
    torch.testing.assert_close(again[1:], expected, atol=1e-6, rtol=0)
    assert (again[:1] - expected).abs().max() > 1e-3
