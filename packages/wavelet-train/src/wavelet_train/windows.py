"""Windows of a token stream: what training and evaluation feed to the model (docs/model.md, sections 8 and 9).

A window of context_length T reads T tokens and predicts the T tokens one position later, so it spans T + 1 tokens.
All batches are int64 tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wavelet_core.config import ConfigurationError


class Windows(NamedTuple):
    """A batch of training windows: `inputs` and `targets` (B, T), targets one position ahead."""

    inputs: Tensor
    targets: Tensor


class StreamWindows(NamedTuple):
    """A batch of consecutive windows, one text stream a row.

    inputs, targets: (B, T). document_starts: (B, T) bool, True where an input token is the first of its document.
    continues: (B,) bool, True where what the model carried out of the row's previous window may be used in this one:
    the two windows together hold text of a single document, and nothing before it.
    """

    inputs: Tensor
    targets: Tensor
    document_starts: Tensor
    continues: Tensor


class ScoredWindows(NamedTuple):
    """A batch of evaluation windows: inputs, targets (B, T) and scored (B, T) bool.

    Over a whole evaluation every token but the very first is scored exactly once. The last batch may be narrower or
    have rows that are padded with token 0 after their end; padding is not scored.
    """

    inputs: Tensor
    targets: Tensor
    scored: Tensor


def _require(available: int, needed: int, split: str, why: str) -> None:
    if available < needed:
        raise ConfigurationError(
            f"data: the {split} split has {available} tokens, but {why} needs {needed}; "
            "use more text or a smaller model.context_length"
        )


def _gather(tokens: np.ndarray, starts: Tensor, length: int) -> Tensor:
    """tokens[start : start + length] for every start, as int64 (B, length)."""
    positions = starts.numpy()[:, None] + np.arange(length)
    return torch.from_numpy(tokens[positions].astype(np.int64))


class RandomWindows(Iterator[Windows]):
    """An endless iterator over batches of windows at uniformly random positions.

    tokens: one-dimensional integer array, memory-mapped or not. The positions depend on the seed alone;
    `state_dict` and `load_state_dict` make a resumed run draw exactly what the uninterrupted one would have drawn.

    Raises ConfigurationError when the text is shorter than one window.
    """

    def __init__(
        self, tokens: np.ndarray, context_length: int, batch_size: int, seed: int = 0, split: str = "train"
    ) -> None:
        _require(len(tokens), context_length + 1, split, f"a window of model.context_length={context_length} tokens")
        self.tokens = tokens
        self.context_length = context_length
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def batches_per_epoch(self) -> int:
        """Batches that together hold as many tokens as the text, at least 1."""
        return max(1, len(self.tokens) // (self.context_length * self.batch_size))

    def __next__(self) -> Windows:
        positions = len(self.tokens) - self.context_length
        starts = torch.randint(positions, (self.batch_size,), generator=self.generator)
        window = _gather(self.tokens, starts, self.context_length + 1)
        return Windows(window[:, :-1], window[:, 1:])

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state, as a tensor that any checkpoint format can hold."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class ConsecutiveWindows(Iterator[StreamWindows]):
    """An endless iterator over batches whose rows continue where the batch before stopped.

    The text is cut into batch_size streams of equal length; row b of every batch is the next window of stream b. After
    the last whole window all streams start again. For models that carry state across windows.

    document_starts: sorted positions in `tokens` of the first token of every document.

    Raises ConfigurationError when a stream is shorter than one window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        document_starts: np.ndarray,
        context_length: int,
        batch_size: int,
        split: str = "train",
    ) -> None:
        needed = batch_size * (context_length + 1)
        why = f"a batch of {batch_size} consecutive windows of model.context_length={context_length} tokens"
        _require(len(tokens), needed, split, why)
        self.tokens = tokens
        self.document_starts = np.asarray(document_starts, dtype=np.int64)
        self.context_length = context_length
        self.batch_size = batch_size
        self.stream_length = len(tokens) // batch_size
        self.window = 0

    @property
    def batches_per_epoch(self) -> int:
        """Whole windows in a stream."""
        return (self.stream_length - 1) // self.context_length

    def _starts_mask(self, starts: Tensor) -> Tensor:
        """(B, T) bool: which input positions begin a document."""
        mask = torch.zeros(self.batch_size, self.context_length, dtype=torch.bool)
        for row, start in enumerate(starts.tolist()):
            first, last = np.searchsorted(self.document_starts, (start, start + self.context_length))
            mask[row, torch.from_numpy(self.document_starts[first:last] - start)] = True
        return mask

    def __next__(self) -> StreamWindows:
        starts = torch.arange(self.batch_size) * self.stream_length + self.window * self.context_length
        window = _gather(self.tokens, starts, self.context_length + 1)
        document_starts = self._starts_mask(starts)
        if self.window == 0:
            continues = torch.zeros(self.batch_size, dtype=torch.bool)
        else:
            # A document may begin with the previous window, but nowhere after that.
            before = self._starts_mask(starts - self.context_length)[:, 1:]
            continues = ~(document_starts.any(1) | before.any(1))
        self.window = (self.window + 1) % self.batches_per_epoch
        return StreamWindows(window[:, :-1], window[:, 1:], document_starts, continues)

    def state_dict(self) -> dict[str, Tensor]:
        """Which window comes next, as a tensor that any checkpoint format can hold."""
        return {"window": torch.tensor(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.window = int(state["window"])


def evaluation_windows(
    tokens: np.ndarray,
    context_length: int,
    stride: int | None = None,
    batch_size: int = 1,
    split: str = "validation",
) -> Iterator[ScoredWindows]:
    """Batches of windows that together score every token but the first exactly once.

    stride: positions between the starts of two windows, context_length by default (non-overlapping windows). With
    context_length // 2 every window but the first scores the tokens that the window before it did not reach, with at
    least half a window of context. The windows before the last are full; the last stops where the text does.

    Raises ConfigurationError when there is nothing to predict, ValueError for a stride outside 1..context_length.
    """
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        raise ValueError(f"the stride must be between 1 and context_length={context_length}, not {stride}")
    _require(len(tokens), 2, split, "evaluation")
    return _scored_batches(tokens, context_length, stride, batch_size)


def count_evaluation_windows(token_count: int, context_length: int, stride: int | None = None) -> int:
    """How many windows `evaluation_windows` makes of a text (not batches)."""
    beyond_first = max(0, token_count - 1 - context_length)
    return 1 + -(-beyond_first // (stride or context_length))


def _scored_batches(tokens: np.ndarray, context_length: int, stride: int, batch_size: int) -> Iterator[ScoredWindows]:
    predictions = len(tokens) - 1
    count = count_evaluation_windows(len(tokens), context_length, stride)
    for first in range(0, count, batch_size):
        starts = [index * stride for index in range(first, min(first + batch_size, count))]
        width = min(context_length, predictions - starts[0])
        inputs = torch.zeros(len(starts), width, dtype=torch.long)
        targets = torch.zeros_like(inputs)
        scored = torch.zeros_like(inputs, dtype=torch.bool)
        for row, start in enumerate(starts):
            end = min(start + context_length, predictions)
            window = torch.from_numpy(tokens[start : end + 1].astype(np.int64))
            inputs[row, : end - start], targets[row, : end - start] = window[:-1], window[1:]
            already_scored = start - stride + context_length if start else 0
            scored[row, max(0, already_scored - start) : end - start] = True
        yield ScoredWindows(inputs, targets, scored)
