"""Operations on streaming states: cloning, selecting, repeating, joining, resetting, saving, moving, windows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core import CheckpointError, State
from wavelet_core.state import leaves, recording

STATEFUL = {
    "bypass": "ema",
    "cross_window_state": True,
    "memories": [
        {
            "kind": "fast_weight_product_key",
            "num_keys": 16,
            "top_k": 3,
            "inference_updates": True,
            "chunk_size": 4,
            "update_learning_rate": 2.0,
        }
    ],
}


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(STATEFUL)


@pytest.fixture(scope="module")
def texts():
    return torch.randint(29, (3, 30), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def read_state(model, texts):
    """A state whose three rows have read 10 tokens each; not to be changed in place."""
    state = model.new_state(3)
    go_on(model, texts[:, :10], state)
    return state


@torch.no_grad()
def go_on(model, tokens, state):
    return model(tokens, state)


def same(first, second):
    ours, theirs = dict(leaves(first.tree)), dict(leaves(second.tree))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_clone_is_independent(model, texts, read_state):
    clone = read_state.clone()
    before = read_state.clone()
    first = go_on(model, texts[:, 10:], clone)
    assert same(read_state, before) and not same(clone, before)
    assert torch.equal(first, go_on(model, texts[:, 10:], read_state.clone()))


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_selected_rows_go_on_as_they_would_have(model, texts, read_state, rows):
    expected = go_on(model, texts[:, 10:], read_state.clone())
    selected = read_state[rows]
    assert selected.batch_size == len(rows)
    torch.testing.assert_close(go_on(model, texts[rows, 10:], selected), expected[rows], atol=1e-5, rtol=0)


def test_every_way_of_naming_rows(read_state):
    assert same(read_state[1], read_state[[1]])
    assert same(read_state[1:], read_state[[1, 2]])
    assert same(read_state[-1], read_state[torch.tensor([2])])
    assert same(read_state[torch.tensor([True, False, True])], read_state[[0, 2]])
    assert same(State.join([read_state[2], read_state[:2]]), read_state[[2, 0, 1]])
    assert same(read_state.repeat(2), read_state[[0, 0, 1, 1, 2, 2]])
    with pytest.raises(IndexError):
        read_state[3]


def test_selected_rows_share_no_memory_with_the_state(model, texts, read_state):
    before = read_state.clone()
    go_on(model, texts[:1, 10:], read_state[:1])
    assert same(read_state, before)


def test_copying_overwrites_in_place(read_state, model):
    state = model.new_state(3)
    places = [tensor.data_ptr() for _, tensor in leaves(state.tree)]
    assert same(state.copy_(read_state), read_state)
    assert [tensor.data_ptr() for _, tensor in leaves(state.tree)] == places


def test_resetting_brings_back_silence(read_state, model):
    assert same(read_state.clone().reset(), model.new_state(3))
    partly = read_state.clone().reset([0, 2])
    assert same(partly[1], read_state[1]) and same(partly[[0, 2]], model.new_state(2))
    assert same(read_state.clone().reset(torch.tensor([1]))[1], model.new_state(1))


def test_a_saved_state_goes_on_in_another_process(model, texts, read_state, tmp_path):
    read_state.save(tmp_path / "state.safetensors")
    loaded = model.new_state(3).load(tmp_path / "state.safetensors")
    assert same(loaded, read_state)
    expected = go_on(model, texts[:, 10:], read_state.clone())
    assert torch.equal(go_on(model, texts[:, 10:], loaded), expected)
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_state_that_does_not_fit_is_refused(model, make_model, read_state, tmp_path):
    file = tmp_path / "state.safetensors"
    read_state.save(file)
    with pytest.raises(CheckpointError, match=r"has shape \[3, .*makes it \[2, "):
        model.new_state(2).load(file)
    with pytest.raises(CheckpointError, match=r"unexpected window\.carried_mean"):
        make_model().new_state(3).load(file)
    with pytest.raises(CheckpointError, match=r"float32, but torch\.bfloat16 is needed"):
        make_model(STATEFUL).bfloat16().new_state(3).load(file)
    with pytest.raises(CheckpointError, match="no such file"):
        model.new_state(3).load(tmp_path / "absent")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cut off"):
        model.new_state(3).load(file)


def test_a_state_follows_the_device_and_dtype_asked_for(model):
    state = model.new_state(2, device="meta", dtype=torch.bfloat16)
    assert all(tensor.is_meta for _, tensor in leaves(state.tree))
    assert state.tree["blocks"]["0"]["wavelet"]["level0"].dtype == torch.bfloat16
    moved = model.new_state(2).to("meta")
    assert moved.nbytes == model.new_state(2).nbytes and next(leaves(moved.tree))[1].is_meta


def test_memory_does_not_grow_with_the_position(model, texts):
    state = model.new_state(3)
    held = state.nbytes
    assert held == sum(tensor.numel() * tensor.element_size() for _, tensor in leaves(state.tree)) > 0
    for token in texts.split(1, 1):
        go_on(model, token, state)
        assert state.nbytes == held


def test_a_new_window_carries_nothing_but_the_mean_of_the_last_one(model, texts, read_state):
    state = model.begin_window(read_state.clone())
    names = [name for name, tensor in leaves(state.tree) if tensor.any()]
    assert names == ["window.carried_mean"]
    carried = go_on(model, texts[:, 10:], state)
    fresh = go_on(model, texts[:, 10:], model.new_state(3))
    assert (carried - fresh).abs().max() > 1e-3
    reset = go_on(model, texts[:, 10:], model.begin_window(read_state.clone()).reset())
    assert torch.equal(reset, fresh)


def test_a_new_window_of_other_models_is_a_reset(make_model, texts):
    model = make_model()
    state = model.new_state(3)
    go_on(model, texts, state)
    assert same(model.begin_window(state), model.new_state(3))


def test_windows_of_independent_cells_are_carried_for_each(make_model, texts):
    model = make_model({"cross_window_state": True, "kind": "multinodal", "cells": 2})
    state = model.new_state(3)
    go_on(model, texts, state)
    model.begin_window(state)
    assert [name for name, tensor in leaves(state.tree) if tensor.any()] == [
        "0.window.carried_mean",
        "1.window.carried_mean",
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(2, 12), st.data())
def test_a_state_goes_back_within_the_last_chunk(make_model, texts, before, length, data):
    """The state and what follows are those of a text of which the last positions were never read."""
    model = make_model({"bypass": data.draw(st.sampled_from([None, "ema", "running_mean"])), "wavelet": {"crawl": 3}})
    back = data.draw(st.integers(1, length - 1))
    state, expected = model.new_state(3), model.new_state(3)
    go_on(model, texts[:, :before], state) if before else None
    with recording() as record:
        go_on(model, texts[:, before : before + length], state)
    assert record.covers(state)
    record.rewind(back)
    end = before + length - back
    go_on(model, texts[:, :end], expected)
    for (name, ours), (_, theirs) in zip(leaves(state.tree), leaves(expected.tree), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=name)
    torch.testing.assert_close(go_on(model, texts[:, end:], state), go_on(model, texts[:, end:], expected))


def test_a_recording_says_what_it_does_not_cover(model, texts):
    state = model.new_state(3)
    with recording() as record:
        go_on(model, texts, state)
    assert not record.covers(state)  # fast-weight deltas are written otherwise
