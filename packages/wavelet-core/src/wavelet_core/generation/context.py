"""Context policies: what the model has read when it predicts the next token (docs/model.md, section 10)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from wavelet_core.generation.session import DecodingSession
from wavelet_core.state import State


def prefill(session: DecodingSession, prompts: Sequence[Sequence[int]], chunk_tokens: int) -> tuple[State, Tensor]:
    """Read prompts: the state after them and the logits (B, V) of the next tokens, in the order of the prompts.

    Equal prompts are read once, and prompts of equal length together, in chunks of at most `chunk_tokens` tokens over
    all rows.
    """
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for prompt in dict.fromkeys(map(tuple, prompts)):
        by_length.setdefault(len(prompt), []).append(prompt)
    states, logits = [], []
    for group in by_length.values():
        state = session.new_state(len(group))
        tokens = torch.tensor(group, device=session.device)
        for chunk in tokens.split(max(1, chunk_tokens // len(group)), dim=1):
            hidden = session.hidden(chunk, state)
        states.append(state)
        logits.append(session.head(hidden[:, -1]))
    order = [prompt for group in by_length.values() for prompt in group]
    if order == list(map(tuple, prompts)):
        return State.join(states) if len(states) > 1 else states[0], torch.cat(logits)
    place = {prompt: index for index, prompt in enumerate(order)}
    rows = [place[tuple(prompt)] for prompt in prompts]
    return State.join(states)[rows], torch.cat(logits)[rows]


class Window:
    """The last tokens of a row that is rebuilt from them every `every` tokens; `since` counts tokens since then."""

    def __init__(self, tokens: Sequence[int], length: int, every: int, since: int = 0):
        self.tokens = deque(tokens, maxlen=length)
        self.every, self.since = every, since

    def read(self, token: int) -> bool:
        """Take a token in; True when the state must be rebuilt now."""
        self.tokens.append(token)
        self.since = (self.since + 1) % self.every
        return self.since == 0

    def copy(self) -> Window:
        return Window(self.tokens, self.tokens.maxlen or 0, self.every, self.since)


class Contexts:
    """What a fixed number of rows have read, every row under a policy of its own.

    `stream`: the state runs on without limit, at constant time and memory per token. `hop:N`: it is rebuilt from the
    last `context_length` tokens every N tokens. `window`: for every token. Rows share nothing but the product.

    logits: of the next token of every row, (rows, V). Memory is allocated when the first row is opened, once.
    """

    def __init__(self, session: DecodingSession, rows: int, chunk_tokens: int):
        self.session, self.rows, self.chunk_tokens = session, rows, chunk_tokens
        self.windows: list[Window | None] = [None] * rows
        self.state: State | None = None
        self.logits = torch.empty(0)

    def open(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], policies: Sequence[str]) -> None:
        """Let rows begin with prompts, whatever they read before."""
        length = self.session.config.context_length
        for row, prompt, policy in zip(rows, prompts, policies, strict=True):
            every = 1 if policy == "window" else int(policy.removeprefix("hop:")) if policy != "stream" else 0
            self.windows[row] = Window(prompt, length, every) if every else None
        windows = [self.windows[row] for row in rows]
        self._read(rows, [w.tokens if w else prompt for w, prompt in zip(windows, prompts, strict=True)])

    def _read(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        state, logits = prefill(self.session, texts, self.chunk_tokens)
        if list(rows) == list(range(self.rows)):
            self.state, self.logits = state, logits
            return
        if self.state is None:
            self.state = self.session.new_state(self.rows)
            self.logits = logits.new_zeros(self.rows, logits.shape[1])
        self.state.write(rows, state)
        self.logits[list(rows)] = logits

    def step(self, tokens: Sequence[int] | Tensor, rows: Sequence[int]) -> None:
        """Let these rows read one more token each; tokens: of every row, of which only theirs count.

        All rows go through the product, so that its shape, and with it every row's numbers, stay the same.
        """
        known = tokens.tolist() if isinstance(tokens, Tensor) and any(self.windows) else tokens
        rebuilt = [row for row in rows if (window := self.windows[row]) and window.read(int(known[row]))]
        if len(rebuilt) < len(rows):
            assert self.state is not None
            tokens = torch.as_tensor(tokens, device=self.session.device)
            self.logits = self.session.next_logits(tokens, self.state)
        if rebuilt:
            self._read(rebuilt, [window.tokens for row in rebuilt if (window := self.windows[row])])

    def select(self, rows: Sequence[int]) -> Contexts:
        """A copy with some of the rows, in the given order; a row may be given several times."""
        other = Contexts(self.session, len(rows), self.chunk_tokens)
        other.windows = [window and window.copy() for window in map(self.windows.__getitem__, rows)]
        if self.state is not None:
            other.state, other.logits = self.state[rows], self.logits[list(rows)]
        return other

    def write(self, rows: Sequence[int], other: Contexts) -> None:
        """Overwrite rows by all rows of other contexts, in order."""
        assert self.state is not None and other.state is not None
        self.state.write(rows, other.state)
        self.logits[list(rows)] = other.logits
        for row, window in zip(rows, other.windows, strict=True):
            self.windows[row] = window
