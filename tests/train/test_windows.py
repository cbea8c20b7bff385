from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core import ConfigurationError
from wavelet_train.windows import (
    ConsecutiveWindows,
    Passage,
    RandomWindows,
    ShuffledWindows,
    TrainingWindows,
    evaluation_windows,
)

TOKENS = np.arange(1000, dtype=np.uint16)


def test_random_windows_predict_the_next_token() -> None:
    inputs, targets, *_ = next(RandomWindows(TOKENS, context_length=16, batch_size=4))
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_random_windows_reach_both_ends_and_no_further() -> None:
    windows = RandomWindows(TOKENS[:10], context_length=4, batch_size=500)
    inputs, targets, *_ = next(windows)
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
    inputs, *_ = next(RandomWindows(np.full(20, 100_000, dtype=np.uint32), 4, 1))
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
    windows = ConsecutiveWindows(tokens, document_starts, context_length, batch_size, whole_windows=True)
    previous = None
    for _ in range(windows.batches_per_epoch):
        batch = next(windows)
        for row in range(batch_size):
            positions = batch.inputs[row].numpy()
            seen = [] if previous is None else [*document_of[previous[row].numpy()], *document_of[positions]]
            assert bool(batch.continues[row]) == (len(set(seen)) == 1)
        previous = batch.inputs


@pytest.mark.parametrize("isolated", [False, True])
def test_a_state_goes_on_until_a_document_ends(isolated: bool) -> None:
    """In the middle of a window nothing can be reset but by the model itself."""
    windows = ConsecutiveWindows(np.arange(61), np.array([0, 15, 30]), 10, 1, isolated=isolated)
    assert [bool(next(windows).continues) for _ in range(7)] == (  # type: ignore[arg-type]
        [False, True, True, False, True, True, False] if isolated else [False, True, False, False, True, True, False]
    )


@settings(max_examples=50)
@given(
    length=st.integers(13, 90), context_length=st.integers(1, 12), batch_size=st.integers(1, 7), seed=st.integers(0, 99)
)
def test_an_epoch_of_shuffled_windows_reads_every_token_once(
    length: int, context_length: int, batch_size: int, seed: int
) -> None:
    tokens = np.arange(length)
    windows = ShuffledWindows(tokens, context_length, batch_size, seed)
    per_epoch = length // context_length
    batches = [next(windows) for _ in range(-(-3 * per_epoch // batch_size))]
    rows = torch.cat([batch.inputs for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert torch.equal((rows + 1) % length, targets)
    for epoch in range(3):
        read = rows[epoch * per_epoch : (epoch + 1) * per_epoch].flatten().tolist()
        assert len(set(read)) == len(read) == length - length % context_length


def test_shuffled_epochs_differ_in_order_and_in_their_cuts() -> None:
    windows = ShuffledWindows(TOKENS, context_length=10, batch_size=100)
    one, other = next(windows).inputs, next(windows).inputs
    assert int(one[0, 0]) % 10 != int(other[0, 0]) % 10
    assert not torch.equal(one[:, 0].argsort(), other[:, 0].argsort())


@settings(max_examples=30)
@given(order=st.sampled_from(["random", "shuffled", "contiguous"]), steps=st.integers(0, 40), data=st.data())
def test_every_order_resumes_exactly_and_gives_ranks_parts_of_the_same_batches(
    order: str, steps: int, data: st.DataObject
) -> None:
    starts = np.array([0, 7, 100, 333])
    cut = data.draw(st.integers(1, 5))

    def windows(rows: slice = slice(None)) -> TrainingWindows:
        if order == "contiguous":
            return ConsecutiveWindows(TOKENS, starts, 16, 6, rows, isolated=True)
        kind = {"random": RandomWindows, "shuffled": ShuffledWindows}[order]
        return kind(TOKENS, 16, 6, 3, rows, starts)

    whole = windows()
    for _ in range(steps):
        next(whole)
    parts = [windows(slice(0, cut)), windows(slice(cut, None))]
    for part in parts:
        part.load_state_dict({name: tensor.clone() for name, tensor in whole.state_dict().items()})
    for _ in range(3):
        for expected, *found in zip(next(whole), *map(next, parts), strict=True):
            assert (expected is None) if found[0] is None else torch.equal(expected, torch.cat(found))


def test_positions_count_from_the_document_and_round_the_end_of_the_text() -> None:
    windows = ShuffledWindows(np.arange(20), 8, 2, seed=1, document_starts=np.array([0, 5, 5, 13]))
    for _ in range(9):
        batch = next(windows)
        expected = torch.tensor([*range(5), *range(8), *range(7)])[batch.inputs]
        assert torch.equal(batch.document_positions, expected)


def test_consecutive_windows_resume_exactly() -> None:
    windows = ConsecutiveWindows(TOKENS, np.array([0, 300]), context_length=10, batch_size=4)
    for _ in range(7):
        next(windows)
    resumed = ConsecutiveWindows(TOKENS, np.array([0, 300]), context_length=10, batch_size=4)
    resumed.load_state_dict(windows.state_dict())
    for expected, found in zip(next(windows)[:3], next(resumed)[:3], strict=True):
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
    for batch in evaluation_windows([Passage(tokens, 1)], context_length, stride, batch_size):
        assert batch.inputs.shape == batch.targets.shape == batch.scored.shape
        assert batch.inputs.shape[1] <= context_length
        assert torch.equal(batch.targets[batch.scored], batch.inputs[batch.scored] + 1)
        scored += batch.targets[batch.scored].tolist()
        windows += len(batch.inputs)
    assert scored == list(range(1, length))
    assert windows == 1 + math.ceil(max(0, length - 1 - context_length) / stride)


COUNTED = Passage(np.arange(18, dtype=np.uint16), 1)


def test_sliding_windows_score_the_new_half() -> None:
    batches = list(evaluation_windows([COUNTED], context_length=8, stride=4, batch_size=8))
    assert len(batches) == 1
    assert batches[0].inputs[:, 0].tolist() == [0, 4, 8, 12]
    assert batches[0].scored.sum(1).tolist() == [8, 4, 4, 1]
    assert batches[0].scored[1].tolist() == [False] * 4 + [True] * 4


def test_windows_do_not_overlap_by_default() -> None:
    batches = list(evaluation_windows([COUNTED], context_length=8))
    assert [batch.inputs[0].tolist() for batch in batches] == [list(range(8)), list(range(8, 16)), [16]]
    assert all(bool(batch.scored.all()) for batch in batches)


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and context_length=8, not {stride}"):
        next(evaluation_windows([COUNTED], 8, stride))


def test_a_text_shorter_than_the_window_is_refused() -> None:
    message = r"data: the train split has 16 tokens, .*needs 17; use more text or a smaller model\.context_length"
    with pytest.raises(ConfigurationError, match=message):
        RandomWindows(TOKENS[:16], context_length=16, batch_size=1)
    next(RandomWindows(TOKENS[:17], context_length=16, batch_size=1))
    with pytest.raises(ConfigurationError, match=r"data: the train split has 33 tokens, .*needs 34"):
        ConsecutiveWindows(TOKENS[:33], np.array([0]), context_length=16, batch_size=2)
