"""Context policies: what the model has read when it predicts the next token (spec/model.md, section 10)."""

from __future__ import annotations

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
        logits.append(model.head(hidden[:, -1:])[:, 0])
    order = [prompt for group in by_length.values() for prompt in group]
    if order == list(map(tuple, prompts)):
        return State.join(states) if len(states) > 1 else states[0], torch.cat(logits)
    place = {prompt: index for index, prompt in enumerate(order)}
    rows = [place[tuple(prompt)] for prompt in prompts]
    return State.join(states)[rows], torch.cat(logits)[rows]


class Stream:
    """The state runs on without limit: constant time and memory per token. Logits are those of the next token."""

    def __init__(self, model: WaveletLM, prompts: Sequence[Sequence[int]], chunk_tokens: int):
        self.model = model
        self.state, self.logits = prefill(model, prompts, chunk_tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token per row, (B,); the next tokens' logits (B, V)."""
        self.logits = self.model.head(self.model.hidden(tokens.unsqueeze(1), self.state))[:, 0]
        return self.logits

    def select(self, rows: Sequence[int]) -> Stream:
        """A copy with some of the rows, in the given order; a row may be given several times."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, state=self.state[rows], logits=self.logits[rows])
        return other


class Hop(Stream):
    """The state is rebuilt from the last `model.config.context_length` tokens every `every` tokens.

    `every=1` is the policy `window`: every token sees exactly the window, at the cost of reading it anew.
    """

    def __init__(self, model: WaveletLM, prompts: Sequence[Sequence[int]], chunk_tokens: int, every: int):
        length = model.config.context_length
        self.windows = [deque(prompt, maxlen=length) for prompt in prompts]
        self.every = every
        self.since_rebuild = 0
        self.chunk_tokens = max(chunk_tokens, length)
        super().__init__(model, self.windows, self.chunk_tokens)  # type: ignore[arg-type]

    def step(self, tokens: Tensor) -> Tensor:
        for window, token in zip(self.windows, tokens.tolist(), strict=True):
            window.append(token)
        self.since_rebuild += 1
        if self.since_rebuild < self.every:
            return super().step(tokens)
        self.since_rebuild = 0
        self.state, self.logits = prefill(self.model, self.windows, self.chunk_tokens)  # type: ignore[arg-type]
        return self.logits

    def select(self, rows: Sequence[int]) -> Hop:
        other = super().select(rows)
        assert isinstance(other, Hop)
        other.windows = [deque(self.windows[row], maxlen=self.windows[row].maxlen) for row in rows]
        return other


def open_context(policy: str, model: WaveletLM, prompts: Sequence[Sequence[int]], chunk_tokens: int) -> Stream:
    """A context under the policy `stream`, `hop:N` or `window`, after it has read the prompts."""
    if policy == "stream":
        return Stream(model, prompts, chunk_tokens)
    return Hop(model, prompts, chunk_tokens, every=1 if policy == "window" else int(policy.removeprefix("hop:")))
