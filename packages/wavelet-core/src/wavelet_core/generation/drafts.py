"""Drafts: cheap guesses of the next tokens for speculative decoding, by look-up in the text or by a smaller model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from wavelet_core.config import ConfigurationError
from wavelet_core.generation.context import prefill
from wavelet_core.generation.sampling import RowSampler
from wavelet_core.generation.session import DecodingSession
from wavelet_core.language_model import LanguageModel


class Draft(ABC):
    """Guesses how one text goes on. A wrong guess costs time and never changes the text."""

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> None:
        """Take in tokens that are now part of the text."""

    def evidence(self) -> int:
        """How much the next guess goes by, the more the surer; 0 where there is nothing to go by."""
        return 1

    @abstractmethod
    def propose(self, count: int, sampler: RowSampler) -> list[int]:
        """At most `count` tokens that may come next; none where there is nothing to go by.

        sampler: a copy of the text's own sampler for the coming positions, to be used up freely.
        """


class DraftSource(ABC):
    """Makes a draft for every text that is generated."""

    @abstractmethod
    def start(self, prompt: Sequence[int]) -> Draft:
        """A draft for a text that begins with `prompt`."""


class NgramDraft(Draft):
    """Continues the text as it went on after the last place where it read like now (prompt look-up decoding).

    Compares the last `longest` tokens, then fewer down to `shortest`. Every token costs the same however long the text
    is; only the last `history` to twice as many tokens are remembered.
    """

    def __init__(self, longest: int, shortest: int, history: int):
        self.sizes = range(longest, shortest - 1, -1)
        self.history = history
        self._forget()

    def _forget(self) -> None:
        self.tokens: list[int] = []
        self.continuations: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = len(self.tokens)
            for size in self.sizes:
                if place >= size:
                    self.continuations[tuple(self.tokens[-size:])] = place
            self.tokens.append(token)
        if len(self.tokens) > 2 * self.history:
            recent = self.tokens[-self.history :]
            self._forget()
            self.extend(recent)

    def evidence(self) -> int:
        """The number of last tokens that the text has had before."""
        known = (size for size in self.sizes if tuple(self.tokens[-size:]) in self.continuations)
        return next(known, 0)

    def propose(self, count: int, sampler: RowSampler) -> list[int]:
        size = self.evidence()
        if not size:
            return []
        place = self.continuations[tuple(self.tokens[-size:])]
        # Past its end the text is taken to go on with the guess, so that a loop is guessed at any length.
        guess = self.tokens[place : place + count]
        period = len(self.tokens) - place
        while len(guess) < count:
            guess.append(guess[len(guess) - period])
        return guess


class NgramDrafts(DraftSource):
    """Drafts by look-up in the text itself; needs no second model."""

    def __init__(self, longest: int = 5, shortest: int = 1, history: int = 32768):
        if not 1 <= shortest <= longest:
            raise ConfigurationError(f"n-gram sizes must satisfy 1 <= shortest={shortest} <= longest={longest}")
        self.longest, self.shortest, self.history = longest, shortest, history

    def start(self, prompt: Sequence[int]) -> NgramDraft:
        draft = NgramDraft(self.longest, self.shortest, self.history)
        draft.extend(prompt)
        return draft


class ModelDraft(Draft):
    """Guesses with a smaller model, drawing with the random numbers that the text itself will be drawn with."""

    def __init__(self, session: DecodingSession, prompt: Sequence[int], chunk_tokens: int):
        self.session, self.device = session, session.device
        self.state, self.logits = prefill(session, [prompt], chunk_tokens)
        self.work = self.state.clone()
        self.unread: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        self.unread.extend(tokens)

    def propose(self, count: int, sampler: RowSampler) -> list[int]:
        if self.unread:
            tokens = torch.tensor([self.unread], device=self.device)
            self.logits = self.session.head(self.session.hidden(tokens, self.state)[:, -1])
            self.unread = []
        guess = [sampler.pick(self.logits)]
        if count > 1:
            self.work.copy_(self.state)
        while len(guess) < count:
            logits = self.session.next_logits(torch.tensor(guess[-1:], device=self.device), self.work)
            guess.append(sampler.pick(logits))
        return guess


class ModelDrafts(DraftSource):
    """Drafts by a smaller model with the same vocabulary."""

    def __init__(self, model: LanguageModel | DecodingSession, chunk_tokens: int = 512):
        self.session = model if isinstance(model, DecodingSession) else DecodingSession(model)
        self.chunk_tokens = chunk_tokens

    def start(self, prompt: Sequence[int]) -> ModelDraft:
        return ModelDraft(self.session, prompt, self.chunk_tokens)
