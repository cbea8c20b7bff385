"""Context policies: what the model has read when it predicts the next token (docs/model.md, section 10)."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavelet_core.state import State

if TYPE_CHECKING:
    from wavelet_core.model import WaveletLM


def prefill(model: WaveletLM, prompts: Sequence[Sequence[int]], chunk_tokens: int) -> tuple[State, Tensor]:
    """Read prompts: the state after them and the logits (B, V) of the next tokens, in the order of the prompts.

    Equal prompts are read once, and prompts of equal length together, in chunks of at most `chunk_tokens` tokens over
    all rows.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for prompt in distinct:
        by_length.setdefault(len(prompt), []).append(prompt)
    device = next(model.parameters()).device
    states, logits = [], []
    for group in by_length.values():
        state = model.new_state(len(group))
        tokens = torch.tensor(group, device=device)
        for chunk in tokens.split(max(1, chunk_tokens // len(group)), dim=1):
            hidden = model.hidden(chunk, state)
        states.append(state)
        logits.append(model.head(hidden[:, -1]))
    order = [prompt for group in by_length.values() for prompt in group]
    if order == list(map(tuple, prompts)):
        return State.join(states) if len(states) > 1 else states[0], torch.cat(logits)
    place = {prompt: index for index, prompt in enumerate(order)}
    rows = [place[tuple(prompt)] for prompt in prompts]
    return State.join(states)[rows], torch.cat(logits)[rows]


class Stream:
    """The state runs on without limit: constant time and memory per token.

    `logits`, (B, V), are those of the next token of every row.
    """

    def __init__(self, model: WaveletLM, state: State, logits: Tensor):
        self.model, self.state, self.logits = model, state, logits

    def step(self, tokens: Tensor) -> None:
        """Read one more token per row, (B,)."""
        self.logits = self.model.head(self.model.hidden(tokens.unsqueeze(1), self.state)[:, 0])

    def select(self, rows: Sequence[int]) -> Stream:
        """A copy with some of the rows, in the given order; a row may be given several times."""
        return Stream(self.model, self.state[rows], self.logits[rows])


class Hop(Stream):
    """The state is rebuilt from the last `model.config.context_length` tokens every `every` tokens.

    `every=1` is the policy `window`: every token sees exactly the window, at the cost of reading it anew. `windows` are
    the rows' last tokens, `since` counts tokens since they were read.
    """

    def __init__(self, model: WaveletLM, windows: Sequence[Sequence[int]], every: int, chunk_tokens: int):
        length = model.config.context_length
        self.windows = [deque(window, maxlen=length) for window in windows]
        self.every = every
        self.chunk_tokens = chunk_tokens
        self.since = 0
        super().__init__(model, *prefill(model, self.windows, chunk_tokens))

    def step(self, tokens: Tensor) -> None:
        for window, token in zip(self.windows, tokens.tolist(), strict=True):
            window.append(token)
        self.since += 1
        if self.since < self.every:
            super().step(tokens)
        else:
            self.since = 0
            self.state, self.logits = prefill(self.model, self.windows, self.chunk_tokens)

    def select(self, rows: Sequence[int]) -> Hop:
        other = copy.copy(self)
        other.state, other.logits = self.state[rows], self.logits[rows]
        other.windows = [self.windows[row].copy() for row in rows]
        return other


def open_context(policy: str, model: WaveletLM, prompts: Sequence[Sequence[int]], chunk_tokens: int) -> Stream:
    """A context under the policy `stream`, `hop:N` or `window`, after it has read the prompts."""
    if policy == "stream":
        return Stream(model, *prefill(model, prompts, chunk_tokens))
    every = 1 if policy == "window" else int(policy.removeprefix("hop:"))
    return Hop(model, prompts, every, chunk_tokens)
