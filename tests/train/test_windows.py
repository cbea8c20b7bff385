from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core import ConfigurationError
from wavelet_train.windows import ConsecutiveWindows, RandomWindows, evaluation_windows

TOKENS = np.arange(1000, dtype=np.uint16)


def test_random_windows_predict_the_next_token() -> None:
    inputs, targets, _ = next(RandomWindows(TOKENS, context_length=16, batch_size=4))
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_random_windows_reach_both_ends_and_no_further() -> None:
    windows = RandomWindows(TOKENS[:10], context_length=4, batch_size=500)
    inputs, targets, _ = next(windows)
    assert set(inputs[:, 0].tolist()) == set(range(6))
    assert (int(inputs.min()), int(targets.max())) == (0, 9)


def test_random_windows_depend_on_the_seed_alone() -> None:
    first, same, other = (RandomWindows(TOKENS, 8, 4, seed) for seed in (3, 3, 4))
    torch.manual_seed(99)
    batch = next(first).inputs
    torch.manual_seed(1)
    assert torch.equal(batch, next(same).inputs)
    assert not torch.equal(batch, next(other).inputs)


def test_random_windows_resume_exactly() -> None:
    windows = RandomWindows(TOKENS, 8, 4, seed=5)
    next(windows)
    state = {name: tensor.clone() for name, tensor in windows.state_dict().items()}
    expected = [next(windows).inputs for _ in range(3)]
    resumed = RandomWindows(TOKENS, 8, 4, seed=0)
    resumed.load_state_dict(state)
    assert all(torch.equal(batch, next(resumed).inputs) for batch in expected)


def test_an_epoch_holds_as_many_tokens_as_the_text() -> None:
    assert RandomWindows(TOKENS, context_length=16, batch_size=4).batches_per_epoch == 1000 // 64
    assert RandomWindows(TOKENS, context_length=256, batch_size=64).batches_per_epoch == 1


def test_token_types_above_16_bits_are_kept() -> None:
    inputs, _, _ = next(RandomWindows(np.full(20, 100_000, dtype=np.uint32), 4, 1))
    assert int(inputs[0, 0]) == 100_000


def test_consecutive_windows_continue_their_row() -> None:
    windows = ConsecutiveWindows(TOKENS, np.array([0]), context_length=10, batch_size=4)
    batches = [next(windows) for _ in range(windows.batches_per_epoch)]
    assert len(batches) == 24
    for before, after in pairwise(batches):
        assert torch.equal(before.inputs[:, -1] + 1, after.inputs[:, 0])
        assert torch.equal(after.inputs + 1, after.targets)
    assert batches[0].inputs[:, 0].tolist() == [0, 250, 500, 750]
    assert torch.equal(next(windows).inputs, batches[0].inputs)


@settings(max_examples=30)
@given(
    starts=st.sets(st.integers(1, 99), max_size=8),
    context_length=st.integers(1, 12),
    batch_size=st.integers(1, 4),
)
def test_state_is_carried_inside_one_document_only(starts: set[int], context_length: int, batch_size: int) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    document_starts = np.array([0, *sorted(starts)])
    document_of = np.searchsorted(document_starts, tokens, side="right")
    windows = ConsecutiveWindows(tokens, document_starts, context_length, batch_size)
    previous = None
    for _ in range(windows.batches_per_epoch):
        batch = next(windows)
        for row in range(batch_size):
            positions = batch.inputs[row].numpy()
            seen = [] if previous is None else [*document_of[previous[row].numpy()], *document_of[positions]]
            assert bool(batch.continues[row]) == (len(set(seen)) == 1)
        previous = batch.inputs


def test_consecutive_windows_resume_exactly() -> None:
    windows = ConsecutiveWindows(TOKENS, np.array([0, 300]), context_length=10, batch_size=4)
    for _ in range(7):
        next(windows)
    resumed = ConsecutiveWindows(TOKENS, np.array([0, 300]), context_length=10, batch_size=4)
    resumed.load_state_dict(windows.state_dict())
    for expected, found in zip(next(windows), next(resumed), strict=True):
        assert torch.equal(expected, found)


@given(
    length=st.integers(2, 80),
    context_length=st.integers(1, 20),
    batch_size=st.integers(1, 5),
    data=st.data(),
)
def test_evaluation_scores_every_token_but_the_first_once(
    length: int, context_length: int, batch_size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context_length))
    tokens = np.arange(length, dtype=np.uint16)
    scored, windows = [], 0
    for batch in evaluation_windows(tokens, context_length, stride, batch_size):
        assert batch.inputs.shape == batch.targets.shape == batch.scored.shape
        assert batch.inputs.shape[1] <= context_length
        assert torch.equal(batch.targets[batch.scored], batch.inputs[batch.scored] + 1)
        scored += batch.targets[batch.scored].tolist()
        windows += len(batch.inputs)
    assert scored == list(range(1, length))
    assert windows == 1 + math.ceil(max(0, length - 1 - context_length) / stride)


def test_sliding_windows_score_the_new_half() -> None:
    batches = list(evaluation_windows(np.arange(18, dtype=np.uint16), context_length=8, stride=4, batch_size=8))
    assert len(batches) == 1
    assert batches[0].inputs[:, 0].tolist() == [0, 4, 8, 12]
    assert batches[0].scored.sum(1).tolist() == [8, 4, 4, 1]
    assert batches[0].scored[1].tolist() == [False] * 4 + [True] * 4


def test_windows_do_not_overlap_by_default() -> None:
    batches = list(evaluation_windows(np.arange(18, dtype=np.uint16), context_length=8))
    assert [batch.inputs[0].tolist() for batch in batches] == [list(range(8)), list(range(8, 16)), [16]]
    assert all(bool(batch.scored.all()) for batch in batches)


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and context_length=8, not {stride}"):
        next(evaluation_windows(TOKENS, 8, stride))


def test_a_text_shorter_than_the_window_is_refused() -> None:
    message = r"data: the train split has 16 tokens, .*needs 17; use more text or a smaller model\.context_length"
    with pytest.raises(ConfigurationError, match=message):
        RandomWindows(TOKENS[:16], context_length=16, batch_size=1)
    next(RandomWindows(TOKENS[:17], context_length=16, batch_size=1))
    with pytest.raises(ConfigurationError, match=r"data: the train split has 33 tokens, .*needs 34"):
        ConsecutiveWindows(TOKENS[:33], np.array([0]), context_length=16, batch_size=2)
    with pytest.raises(ConfigurationError, match="data: the test split has 1 tokens"):
        next(evaluation_windows(TOKENS[:1], 16, split="test"))
