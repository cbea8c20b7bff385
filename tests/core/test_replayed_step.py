"""Recorded steps give the same numbers bit by bit, and are only used where they do."""

import gc

import pytest
import torch
from torch import nn

from wavelet_core.generation import DecodingSession, replayed_step
from wavelet_core.generation.replayed_step import MOST_STATES, STEPS_BEFORE_REPLAY
from wavelet_core.kernels import use_kernel
from wavelet_core.state import leaves

TOKENS = torch.randint(29, (2, 24), generator=torch.Generator().manual_seed(0))


def decode(session, state, columns=range(24)):
    with torch.inference_mode():
        return torch.stack([session.next_logits(TOKENS[:, column], state) for column in columns])


@torch.inference_mode()
def is_replayed(session, state):
    return session.is_replayed(state)


def assert_same(session, plain, state, other, columns=range(24)):
    assert torch.equal(decode(session, state, columns), decode(plain, other, columns))
    for (name, own), (_, others) in zip(leaves(state.tree), leaves(other.tree), strict=True):
        assert torch.equal(own, others), name


@pytest.fixture
def small(make_model, headline):
    """A model, a session that has a record of its steps for a state, one that replays nothing, and their states."""
    model = make_model(headline)
    session, plain = DecodingSession(model), DecodingSession(model, replay=False)
    states = session.new_state(2), plain.new_state(2)
    assert_same(session, plain, *states)
    assert is_replayed(session, states[0])
    return model, session, plain, states


def test_replayed_steps_are_the_same_bit_by_bit(make_model, architecture):
    model = make_model(architecture)
    session, plain = DecodingSession(model), DecodingSession(model, replay=False)
    state, other = session.new_state(2), plain.new_state(2)
    assert_same(session, plain, state, other)
    assert is_replayed(session, state) and not is_replayed(plain, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits(make_model, headline, dtype):
    model = make_model(headline).to(dtype)
    session, plain = DecodingSession(model), DecodingSession(model, replay=False)
    state = session.new_state(2)
    assert_same(session, plain, state, plain.new_state(2))
    assert is_replayed(session, state)


def test_logits_that_were_given_stay(small):
    _, session, _, (state, _) = small
    with torch.inference_mode():
        first = session.next_logits(TOKENS[:, 0], state)
        copy = first.clone()
        session.next_logits(TOKENS[:, 1], state)
    assert torch.equal(first, copy)


def test_weights_may_change_in_place(small):
    model, session, plain, states = small
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    assert_same(session, plain, *states)
    assert is_replayed(session, states[0])


@pytest.mark.parametrize("change", ["parameter", "data", "type", "kernel", "threads", "hook"])
def test_a_record_that_fits_no_more_is_not_used(small, change):
    model, session, plain, states = small
    heard = []
    if change == "parameter":
        model.head.weight = nn.Parameter(torch.randn_like(model.head.weight))
    elif change == "data":
        model.blocks[0].project.weight.data = torch.randn_like(model.blocks[0].project.weight)
    elif change == "type":
        model.double()
        for state in states:
            state.tree = DecodingSession(model).new_state(2).tree
    elif change == "kernel":
        use_kernel("torch")
    elif change == "threads":
        torch.set_num_threads(torch.get_num_threads() + 1)
    elif change == "hook":
        model.head.register_forward_hook(lambda *arguments: heard.append(1))
    try:
        assert not is_replayed(session, states[0])
        assert_same(session, plain, *states)
        assert is_replayed(session, states[0]) is (change != "hook")
        assert len(heard) == (48 if change == "hook" else 0)
    finally:
        use_kernel(None)
        if change == "threads":
            torch.set_num_threads(torch.get_num_threads() - 1)


class Asks(nn.Module):
    """A head that does what no record can hold."""

    def __init__(self, head, how):
        super().__init__()
        self.head, self.how, self.calls = head, how, 0

    def forward(self, x):
        self.calls += 1
        if self.how == "number" and x.sum().item() > 0:
            x = x + 1
        if self.how == "numpy":
            x = x + torch.from_numpy(x.cpu().numpy().copy())
        if self.how == "count":
            x = x * self.calls
        if self.how == "error" and torch._C._len_torch_dispatch_stack():
            raise RuntimeError("not under a mode")
        if self.how == "chance":
            x = x + 0 * torch.rand_like(x)
        return self.head(x)


@pytest.mark.parametrize("how", ["number", "numpy", "count", "error", "chance"])
def test_steps_that_cannot_be_recorded_are_computed_as_they_are(make_model, how):
    model = make_model()
    session, plain = DecodingSession(model), DecodingSession(model, replay=False)
    session.head, plain.head = Asks(model.head, how).eval(), Asks(model.head, how).eval()
    state, other = session.new_state(2), plain.new_state(2)
    for columns in (range(STEPS_BEFORE_REPLAY - 2), range(STEPS_BEFORE_REPLAY - 2, 24)):
        got = decode(session, state, columns)
        if how == "count":  # the recorder calls it more often: only that no stale number is given counts
            break
        assert torch.equal(got, decode(plain, other, columns))
    decode(session, state)
    assert not is_replayed(session, state)


def test_only_without_gradients_and_resets(small):
    _, session, plain, (state, other) = small
    with torch.no_grad():
        assert not session.is_replayed(state)
        assert torch.equal(session.next_logits(TOKENS[:, 0], state), plain.next_logits(TOKENS[:, 0], other))
    with torch.inference_mode():
        state.document_positions = torch.zeros(2, 1, dtype=torch.int64)
        assert not is_replayed(session, state)


def test_a_record_that_would_keep_much_is_not_kept(make_model, headline, monkeypatch):
    monkeypatch.setattr(replayed_step, "MOST_BYTES", 100_000)
    model = make_model(headline)
    session, plain = DecodingSession(model), DecodingSession(model, replay=False)
    state, other, large = session.new_state(2), plain.new_state(2), session.new_state(64)
    with torch.inference_mode():
        for _ in range(STEPS_BEFORE_REPLAY):
            session.next_logits(TOKENS[0, :1].repeat(64), large)
    assert_same(session, plain, state, other)
    assert is_replayed(session, state) and not is_replayed(session, large)


def test_states_have_records_of_their_own_and_the_oldest_go(make_model, headline):
    model = make_model(headline)
    session, plain = DecodingSession(model), DecodingSession(model, replay=False)
    pairs = [(session.new_state(2), plain.new_state(2)) for _ in range(MOST_STATES + 1)]
    for first in range(0, 24, 4):
        for state, other in pairs[:-1]:
            assert_same(session, plain, state, other, range(first, first + 4))
    assert all(is_replayed(session, state) for state, _ in pairs[:-1])
    assert_same(session, plain, *pairs[-1])
    assert [is_replayed(session, state) for state, _ in pairs] == [False, *[True] * MOST_STATES]


def test_a_state_that_is_gone_is_not_taken_for_a_new_one(small):
    _, session, plain, _ = small
    for _ in range(20):
        state = session.new_state(2)
        assert not is_replayed(session, state)
        assert_same(session, plain, state, plain.new_state(2), range(STEPS_BEFORE_REPLAY + 1))
        del state
        gc.collect()
