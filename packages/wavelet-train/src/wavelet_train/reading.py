"""How a text is read to be scored, and the score of each of its tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, starmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from wavelet_core.config import ConfigurationError
from wavelet_core.generation.session import decoding_view
from wavelet_core.language_model import LanguageModel
from wavelet_core.state import State
from wavelet_core.threads import available_processors
from wavelet_train.precision import autocast
from wavelet_train.ranks import ALONE, Ranks
from wavelet_train.token_split import TokenSplit
from wavelet_train.windows import Passage, ScoredWindows, evaluation_windows, padded_windows

# Logits that a batch has at once.
CHUNK = 1 << 23


@dataclass(frozen=True)
class Reading:
    """How a text is read to be scored: in windows that are independent of each other, or by a state that runs on.

    window: tokens that a window reads; None is model.context_length. stride: tokens between the starts of two windows;
    None is a whole window. streaming: instead of windows, each document is read from its first token to its last with
    the model's state. separate_documents: windows begin anew with every document, which is predicted from an
    end-of-text token on (without one in the vocabulary, from its own first token on), and the end of text after it is
    not scored; otherwise windows are laid over the text as a whole, and its very first token is not scored.
    cross_window_state: windows of a document carry on what `model.cross_window_state` carries in training.
    fast_weight_updates: fast-weight memories learn from each document as it streams.

    What is not asked for is off, whatever the model's configuration says. Raises ConfigurationError for what does not
    go together.
    """

    window: int | None = None
    stride: int | None = None
    streaming: bool = False
    separate_documents: bool = False
    cross_window_state: bool = False
    fast_weight_updates: bool = False

    def __post_init__(self) -> None:
        if self.streaming and (self.stride is not None or self.window is not None):
            raise ConfigurationError("streaming reads without windows: leave out the window and the stride")
        if self.cross_window_state and (self.streaming or self.stride is not None):
            raise ConfigurationError("cross-window state is carried between windows that do not overlap: use those")
        if self.fast_weight_updates and not self.streaming:
            raise ConfigurationError("fast weights are updated while a text streams: use streaming")

    @property
    def with_state(self) -> bool:
        """Whether something is carried along a document."""
        return self.streaming or self.cross_window_state

    def passages(self, split: TokenSplit, end_of_text: int | None, limit: int | None = None) -> list[Passage]:
        """What of a split is read in a row. limit: predict no more than the first so many tokens.

        Raises ConfigurationError when there is nothing to predict.
        """
        tokens = split.tokens if limit is None else split.tokens[: limit + 1]
        if not (self.with_state or self.separate_documents or split.counts is not None):
            passages = [Passage(tokens, 1)]
        else:
            starts = split.document_starts[: np.searchsorted(split.document_starts, len(tokens))]
            ends = [*starts[1:], len(tokens)]
            passages = [
                self._document(tokens, int(start), int(end), end_of_text)
                for start, end in zip(starts, ends, strict=True)
            ]
        passages = [passage for passage in passages if len(passage.tokens) > 1]
        if not passages:
            raise ConfigurationError(
                f"data: the {split.name} split has {len(tokens)} tokens and none to predict; use more text"
            )
        return passages

    def _document(self, tokens: np.ndarray, start: int, end: int, end_of_text: int | None) -> Passage:
        """The document with these tokens, and with the end-of-text token before them where there is one."""
        if end_of_text is None:
            return Passage(tokens[start:end], start + 1)
        if self.separate_documents and end < len(tokens):
            end -= 1
        if start:
            return Passage(tokens[start - 1 : end], start)
        if self.separate_documents:
            return Passage(np.concatenate([np.array([end_of_text], tokens.dtype), tokens[:end]]), 0)
        return Passage(tokens[:end], 1)


class TokenScores(NamedTuple):
    """Of some tokens: where they stand in the text, how many tokens were read to predict them, their negative
    log-likelihoods in nats, and whether they were the likeliest. (n,) each; int64, int64, float64, bool."""

    places: np.ndarray
    read: np.ndarray
    nats: np.ndarray
    correct: np.ndarray


def token_scores(
    model: LanguageModel,
    passages: Iterable[Passage],
    reading: Reading,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    counts: np.ndarray | None = None,
    workers: Callable[[], int] | None = None,
) -> Iterator[TokenScores]:
    """Score passages, without a change to the model or its mode; every token but a passage's first, once.

    batch_size: windows, or documents, at a time. dtype: what autocast computes in. ranks: processes that share the
    batches out among themselves. counts: (N,) bool, which tokens of the text are scored; None for all. workers: how
    many threads score batches at a time, asked again for every batch, but for batches that go on with a state. With one
    thread of torch's each, the scores do not depend on their number.

    Raises ConfigurationError where the model has nothing of what is asked for, and for a stride that leaves gaps.
    """
    device = next(model.parameters()).device
    view = _view(model, reading)
    batches: Iterator[tuple[ScoredWindows, State | None]]
    if reading.with_state:
        batches = _with_state(view, list(passages), reading, batch_size, device)
    else:
        window = reading.window or model.config.context_length
        batches = ((batch, None) for batch in evaluation_windows(passages, window, reading.stride, batch_size))

    @torch.no_grad()
    def score(batch: ScoredWindows, state: State | None) -> TokenScores:
        scored = batch.scored
        if counts is not None:
            scored = scored & torch.from_numpy(counts[batch.places.clamp(max=len(counts) - 1)])
        targets = batch.targets[scored].to(device)
        nats, correct = torch.empty(len(targets), dtype=torch.float64), torch.empty(len(targets), dtype=torch.bool)
        with autocast(device, dtype):
            hidden = view.hidden(batch.inputs.to(device), state)[scored.to(device)]
            rows = max(1, CHUNK // model.config.vocabulary)
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                logits = view.head(hidden[part]).float()
                nats[part] = F.cross_entropy(logits, targets[part], reduction="none")
                correct[part] = logits.argmax(-1) == targets[part]
        return TokenScores(*(each.numpy() for each in (batch.places[scored], batch.read[scored], nats, correct)))

    own = islice(batches, ranks.rank, None, ranks.count)
    if workers is None or reading.with_state:
        return starmap(score, own)
    return _side_by_side(score, own, workers)


def _side_by_side(
    score: Callable[..., TokenScores], batches: Iterable[tuple[Any, ...]], workers: Callable[[], int]
) -> Iterator[TokenScores]:
    """The scores of batches in their order, so many at a time in threads of their own."""
    with ThreadPoolExecutor(available_processors()) as pool:
        pending: deque[Future[TokenScores]] = deque()
        for batch in batches:
            pending.append(pool.submit(score, *batch))
            while len(pending) >= workers():
                yield pending.popleft().result()
        for left in pending:
            yield left.result()


def _view(model: LanguageModel, reading: Reading) -> Any:
    """The model in evaluation mode, carrying on and updating nothing that is not asked for."""
    if reading.cross_window_state and not getattr(model, "carries_window", False):
        raise ConfigurationError("the model carries no state across windows (model.cross_window_state)")
    view = decoding_view(model)
    memories = [module for module in view.modules() if hasattr(module, "inference_updates")]
    if reading.fast_weight_updates and not memories:
        raise ConfigurationError("the model has no fast_weight_product_key memory")
    for memory in memories:
        memory.inference_updates = reading.fast_weight_updates
    return view


def _with_state(
    view: Any, passages: list[Passage], reading: Reading, batch_size: int, device: torch.device
) -> Iterator[tuple[ScoredWindows, State]]:
    """Passages side by side, those of about one length together, in chunks that go on with the state."""
    passages.sort(key=lambda passage: len(passage.tokens), reverse=True)
    window = reading.window or view.config.context_length
    for first in range(0, len(passages), batch_size):
        rows = passages[first : first + batch_size]
        state, read = view.new_state(len(rows), device), 0
        while rows:
            length = window if reading.cross_window_state else window * batch_size // len(rows)
            if reading.cross_window_state:
                view.begin_window(state)
            chunk = [Passage(tokens[read : read + length + 1], place + read) for tokens, place in rows]
            yield padded_windows(chunk, [0] * len(rows), 0 if reading.cross_window_state else read), state
            read += length
            left = sum(len(tokens) - 1 > read for tokens, _ in rows)
            if left < len(rows):
                rows, state = rows[:left], state[:left]
