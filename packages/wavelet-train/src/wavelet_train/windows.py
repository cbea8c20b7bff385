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
    """A batch of training windows (B, T).

    continues: of consecutive windows, (B,) bool, True where what the model carried out of the row's previous window may
    be used in this one: the two windows together hold text of a single document, and nothing before it.
    """

    inputs: Tensor
    targets: Tensor
    continues: Tensor | None = None


class ScoredWindows(NamedTuple):
    """A batch of evaluation windows (B, T); scored: (B, T) bool, which targets count.

    The last batch may be narrower or have rows that are padded with token 0 after their end, which is not scored.
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

    def __init__(self, tokens: np.ndarray, context_length: int, batch_size: int, seed: int = 0) -> None:
        _require(len(tokens), context_length + 1, "train", f"a window of model.context_length={context_length} tokens")
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
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class ConsecutiveWindows(Iterator[Windows]):
    """An endless iterator over batches whose rows continue where the batch before stopped.

    The text is cut into batch_size streams of equal length; row b of every batch is the next window of stream b. After
    the last whole window all streams start again. For models that carry state across windows.

    document_starts: sorted positions in `tokens` of the first token of every document.

    Raises ConfigurationError when a stream is shorter than one window.
    """

    def __init__(self, tokens: np.ndarray, document_starts: np.ndarray, context_length: int, batch_size: int) -> None:
        needed = batch_size * (context_length + 1)
        why = f"a batch of {batch_size} consecutive windows of model.context_length={context_length} tokens"
        _require(len(tokens), needed, "train", why)
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

    def __next__(self) -> Windows:
        starts = torch.arange(self.batch_size) * self.stream_length + self.window * self.context_length
        window = _gather(self.tokens, starts, self.context_length + 1)
        # A document may begin with the previous window, but nowhere after that.
        first = np.searchsorted(self.document_starts, starts.numpy() - self.context_length + 1)
        last = np.searchsorted(self.document_starts, starts.numpy() + self.context_length)
        continues = torch.from_numpy(first == last) & (self.window > 0)
        self.window = (self.window + 1) % self.batches_per_epoch
        return Windows(window[:, :-1], window[:, 1:], continues)

    def state_dict(self) -> dict[str, Tensor]:
        return {"window": torch.tensor(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a place that the text does not have."""
        window = int(state["window"])
        if not 0 <= window < self.batches_per_epoch:
            raise ValueError(f"window {window} is none of the {self.batches_per_epoch} in a stream")
        self.window = window


def evaluation_windows(
    tokens: np.ndarray, context_length: int, stride: int | None = None, batch_size: int = 1, split: str = "validation"
) -> Iterator[ScoredWindows]:
    """Batches of windows that together score every token but the first exactly once.

    stride: positions between the starts of two windows, context_length by default (non-overlapping windows). With
    context_length // 2 every window but the first scores the tokens that the window before it did not reach, with at
    least half a window of context. The windows before the last are full; the last stops where the text does.

    The first batch raises ConfigurationError when there is nothing to predict, ValueError for a stride outside
    1..context_length.
    """
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        raise ValueError(f"the stride must be between 1 and context_length={context_length}, not {stride}")
    _require(len(tokens), 2, split, "evaluation")
    predictions = len(tokens) - 1
    all_starts = range(0, max(1, predictions - context_length + stride), stride)
    for first in range(0, len(all_starts), batch_size):
        starts = all_starts[first : first + batch_size]
        inputs = torch.zeros(len(starts), min(context_length, predictions - starts[0]), dtype=torch.long)
        targets = torch.zeros_like(inputs)
        scored = torch.zeros_like(inputs, dtype=torch.bool)
        for row, start in enumerate(starts):
            end = min(start + context_length, predictions)
            window = torch.from_numpy(tokens[start : end + 1].astype(np.int64))
            inputs[row, : end - start], targets[row, : end - start] = window[:-1], window[1:]
            already_scored = context_length - stride if start else 0
            scored[row, already_scored : end - start] = True
        yield ScoredWindows(inputs, targets, scored)
