"""Windows of a token stream: what training and evaluation feed to the model (docs/model.md, sections 8 and 9).

A window of context_length T reads T tokens and predicts the T tokens one position later, so it spans T + 1 tokens.
All batches are int64 tensors on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wavelet_core.config import ConfigurationError
from wavelet_core.linear_cross_entropy import IGNORED


class Windows(NamedTuple):
    """A batch of training windows (B, T).

    continues: of consecutive windows, (B,) bool, True where what the model carried out of the row's previous window may
    be used in this one. document_positions: (B, T), how many tokens of its document stand before each input.
    """

    inputs: Tensor
    targets: Tensor
    continues: Tensor | None = None
    document_positions: Tensor | None = None


class Passage(NamedTuple):
    """Tokens that are read from silence, in a row. The first is not predicted; place: where the second stands in the
    text that the passage is of, from which the others follow."""

    tokens: np.ndarray
    place: int


class ScoredWindows(NamedTuple):
    """A batch of evaluation windows (B, T); scored: (B, T) bool, which targets count.

    places: (B, T), where targets stand in the text. read: (B, T), tokens that were read when a target is predicted.
    Rows may be padded with token 0 after their end, which is not scored.
    """

    inputs: Tensor
    targets: Tensor
    scored: Tensor
    places: Tensor
    read: Tensor


def _require(available: int, needed: int, split: str, why: str) -> None:
    if available < needed:
        raise ConfigurationError(
            f"data: the {split} split has {available} tokens, but {why} needs {needed}; "
            "use more text or a smaller model.context_length"
        )


class TrainingWindows(Iterator[Windows], ABC):
    """An endless iterator over the batches of a run, in an order that only the text, the sizes and the seed decide.

    tokens: one-dimensional integer array, memory-mapped or not. batch_size: windows in a whole batch. rows: those of
    them that are given out; whatever they are, the batches are parts of the same whole ones. document_starts: sorted
    positions in `tokens` of the first token of every document; with them each batch has `document_positions`. counts:
    which tokens are to be predicted, all by default; the targets of the others are IGNORED.

    `state_dict` and `load_state_dict` make a resumed run read exactly what the uninterrupted one would have read.

    holds_place: whether the state is a place in this very text, and not one for any text.

    Raises ConfigurationError when the text is too short.
    """

    holds_place = True

    def __init__(
        self,
        tokens: np.ndarray,
        context_length: int,
        batch_size: int,
        rows: slice = slice(None),
        document_starts: np.ndarray | None = None,
        counts: np.ndarray | None = None,
    ) -> None:
        self.tokens = tokens
        self.context_length = context_length
        self.batch_size = batch_size
        self.rows = rows
        self.document_starts = document_starts
        self.counts = counts

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Batches that together hold about as many tokens as the text, at least 1."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Where the iterator is."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another one was. Raises RuntimeError or ValueError for a place that there is not."""

    def _batch(self, starts: Tensor, continues: Tensor | None = None) -> Windows:
        """The windows at the starts of a whole batch; the text goes on at its beginning after its end."""
        if continues is not None:
            continues = continues[self.rows]
        positions = (starts.numpy()[self.rows, None] + np.arange(self.context_length + 1)) % len(self.tokens)
        window = torch.from_numpy(self.tokens[positions].astype(np.int64))
        targets = window[:, 1:]
        if self.counts is not None:
            targets = targets.masked_fill(~torch.from_numpy(self.counts[positions[:, 1:]]), IGNORED)
        inside = None
        if self.document_starts is not None:
            before = np.searchsorted(self.document_starts, positions[:, :-1], side="right") - 1
            inside = torch.from_numpy(positions[:, :-1] - self.document_starts[before])
        return Windows(window[:, :-1], targets, continues, inside)


class RandomWindows(TrainingWindows):
    """Windows at uniformly random positions, each drawn anew."""

    holds_place = False

    def __init__(
        self,
        tokens: np.ndarray,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        rows: slice = slice(None),
        document_starts: np.ndarray | None = None,
        counts: np.ndarray | None = None,
    ) -> None:
        super().__init__(tokens, context_length, batch_size, rows, document_starts, counts)
        _require(len(tokens), context_length + 1, "train", f"a window of model.context_length={context_length} tokens")
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.windows_per_epoch // self.batch_size)

    @property
    def windows_per_epoch(self) -> int:
        """Windows that together hold about as many tokens as the text."""
        return len(self.tokens) // self.context_length

    def __next__(self) -> Windows:
        positions = len(self.tokens) - self.context_length
        return self._batch(torch.randint(positions, (self.batch_size,), generator=self.generator))

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class ShuffledWindows(RandomWindows):
    """Windows that do not overlap, in an order drawn anew for every epoch: it reads every token once.

    The text is taken as a ring and cut from a random position on into whole windows. What is left over, less than a
    window, is elsewhere in each epoch. Batches are filled across the end of an epoch.
    """

    holds_place = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.window = 0
        self.before_epoch = self.generator.get_state()
        self.starts = self._draw_starts()

    def _draw_starts(self) -> Tensor:
        first = torch.randint(len(self.tokens), (), generator=self.generator)
        order = torch.randperm(self.windows_per_epoch, generator=self.generator)
        return order.mul_(self.context_length).add_(first)

    def __next__(self) -> Windows:
        parts, missing = [], self.batch_size
        while missing:
            if self.window == self.windows_per_epoch:
                self._begin_epoch()
            parts.append(self.starts[self.window : self.window + missing])
            self.window += len(parts[-1])
            missing -= len(parts[-1])
        return self._batch(torch.cat(parts))

    def state_dict(self) -> dict[str, Tensor]:
        """The generator as it was before the epoch, and how many windows of the epoch have been read."""
        return {"generator": self.before_epoch, "window": torch.tensor(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        window = _place(state, self.windows_per_epoch, "an epoch", last=1)
        super().load_state_dict(state)
        self._begin_epoch()
        self.window = window


class DocumentWindows(ShuffledWindows):
    """Windows that begin where a document does, or where the window before ended in it; targets behind the document's
    end are IGNORED. They come in an order drawn anew for every epoch.

    borders: where documents begin. Other arguments are those of TrainingWindows, and the seed.
    """

    def __init__(self, tokens: np.ndarray, borders: np.ndarray, *arguments: Any, **options: Any) -> None:
        self.ends = np.append(borders[1:], len(tokens))
        context_length = arguments[0]
        starts = [np.arange(start, end - 1, context_length) for start, end in zip(borders, self.ends, strict=True)]
        self.all_starts = torch.from_numpy(np.concatenate(starts))
        if not len(self.all_starts):
            raise ConfigurationError("data: no document of the train split has two tokens; use longer ones")
        super().__init__(tokens, *arguments, **options)

    @property
    def windows_per_epoch(self) -> int:
        return len(self.all_starts)

    def _draw_starts(self) -> Tensor:
        return self.all_starts[torch.randperm(self.windows_per_epoch, generator=self.generator)]

    def _batch(self, starts: Tensor, continues: Tensor | None = None) -> Windows:
        batch = super()._batch(starts, continues)
        starts = starts[self.rows]
        left = torch.from_numpy(self.ends[np.searchsorted(self.ends, starts.numpy(), side="right")]) - starts - 1
        behind = torch.arange(self.context_length) >= left.unsqueeze(1)
        return batch._replace(targets=batch.targets.masked_fill(behind, IGNORED))


class ConsecutiveWindows(TrainingWindows):
    """Windows that continue where the batch before stopped, for models that carry state from one to the next.

    The text is cut into batch_size streams of equal length; row b of every batch is the next window of stream b. After
    the last whole window all streams start again.

    document_starts: as of TrainingWindows. isolated: inside a window the model resets its state at them by itself;
    batches have `document_positions` then, and a row continues unless it begins with a document. Otherwise what was
    carried out of a window must not mix documents, and a row continues if the one before held no other document's
    beginning; with `whole_windows`, for what reaches all positions of a window at once, nor does its own window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        document_starts: np.ndarray,
        context_length: int,
        batch_size: int,
        rows: slice = slice(None),
        isolated: bool = False,
        whole_windows: bool = False,
        counts: np.ndarray | None = None,
    ) -> None:
        self.borders = np.asarray(document_starts, dtype=np.int64)
        super().__init__(tokens, context_length, batch_size, rows, self.borders if isolated else None, counts)
        needed = batch_size * (context_length + 1)
        why = f"a batch of {batch_size} consecutive windows of model.context_length={context_length} tokens"
        _require(len(tokens), needed, "train", why)
        self.first_unbroken = 0 if isolated else 1 - context_length
        self.last_unbroken = context_length - 1 if whole_windows and not isolated else 0
        self.stream_length = len(tokens) // batch_size
        self.window = 0

    @property
    def batches_per_epoch(self) -> int:
        """Whole windows in a stream."""
        return (self.stream_length - 1) // self.context_length

    def __next__(self) -> Windows:
        starts = torch.arange(self.batch_size) * self.stream_length + self.window * self.context_length
        # Documents that begin before the first of these positions, and up to the last: the same ones, or there is one.
        first = np.searchsorted(self.borders, starts.numpy() + self.first_unbroken)
        last = np.searchsorted(self.borders, starts.numpy() + self.last_unbroken, side="right")
        continues = torch.from_numpy(first == last) & (self.window > 0)
        self.window = (self.window + 1) % self.batches_per_epoch
        return self._batch(starts, continues)

    def state_dict(self) -> dict[str, Tensor]:
        return {"window": torch.tensor(self.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.window = _place(state, self.batches_per_epoch, "a stream")


def _place(state: Mapping[str, Any], windows: int, whole: str, last: int = 0) -> int:
    window = int(state["window"])
    if not 0 <= window < windows + last:
        raise ValueError(f"window {window} is none of the {windows} in {whole}")
    return window


def evaluation_windows(
    passages: Iterable[Passage], context_length: int, stride: int | None = None, batch_size: int = 1
) -> Iterator[ScoredWindows]:
    """Batches of windows that together score every token of every passage but its first exactly once.

    stride: positions between the starts of two windows, context_length by default (non-overlapping windows). With
    context_length // 2 every window but a passage's first scores the tokens that the window before it did not reach,
    with at least half a window of context. The last window of a passage stops where the passage does.

    The first batch raises ConfigurationError for a stride outside 1..context_length.
    """
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        raise ConfigurationError(f"the stride must be between 1 and context_length={context_length}, not {stride}")

    def windows() -> Iterator[tuple[Passage, int]]:
        for tokens, place in passages:
            predictions = len(tokens) - 1
            if predictions < 1:
                continue
            for start in range(0, max(1, predictions - context_length + stride), stride):
                window = Passage(tokens[start : start + context_length + 1], place + start)
                yield window, context_length - stride if start else 0

    rows = windows()
    while batch := list(islice(rows, batch_size)):
        yield padded_windows(*zip(*batch, strict=True))


def padded_windows(passages: Sequence[Passage], already_scored: Sequence[int], read: int = 0) -> ScoredWindows:
    """Passages as rows of one batch. already_scored: how many of a row's first targets do not count. read: tokens that
    each row has read before."""
    length = max(len(tokens) for tokens, _ in passages) - 1
    inputs = torch.zeros(len(passages), length, dtype=torch.long)
    targets = torch.zeros_like(inputs)
    scored = torch.zeros_like(inputs, dtype=torch.bool)
    for row, ((tokens, _), before) in enumerate(zip(passages, already_scored, strict=True)):
        window = torch.from_numpy(tokens.astype(np.int64))
        end = len(window) - 1
        inputs[row, :end], targets[row, :end] = window[:-1], window[1:]
        scored[row, before:end] = True
    steps = torch.arange(length)
    places = torch.tensor([place for _, place in passages]).unsqueeze(1) + steps
    return ScoredWindows(inputs, targets, scored, places, (read + 1 + steps).expand_as(inputs))
