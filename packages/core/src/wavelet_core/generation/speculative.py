"""Speculative decoding: verify several guessed tokens in one forward pass (Leviathan et al. 2023), losslessly.

Every token is drawn by the text's own samplers with the random number of its position, whether it was guessed or not:
a guess is accepted when it is the token that plain decoding draws there. So the text is that of plain decoding with the
same seed, greedy or sampled, and its distribution is unchanged; guesses decide only how many tokens a pass yields.
(A chunk and single steps sum in different orders; where two tokens tie within rounding the texts may part.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavelet_core.generation.context import prefill
from wavelet_core.generation.decoders import prompt_tensors
from wavelet_core.generation.drafts import DraftSource
from wavelet_core.generation.sampling import RowSampler, RowSeed, SamplerChain
from wavelet_core.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from wavelet_core.model import WaveletLM


class Pace:
    """How many tokens to guess: more after success, fewer and less often after failure.

    A guess succeeds when its pass yields tokens at least as fast as plain passes do, by the clock: what a longer chunk
    costs depends on the machine and the type of the weights. A guess that is accepted whole doubles the length; each
    failure in a row doubles a pause, so that text which cannot be guessed costs next to nothing extra.
    """

    shortest, longest, longest_pause = 3, 15, 64

    def __init__(self) -> None:
        self.length = self.shortest
        self.failures = 0
        self.pause = 0
        self.plain_seconds: float | None = None

    def next_length(self) -> int:
        """The number of tokens to guess now; 0 in a pause, and until a plain pass has been timed."""
        if self.plain_seconds is None:
            return 0
        if self.pause:
            self.pause -= 1
            return 0
        return self.length

    def passed(self, seconds: float) -> None:
        """Learn how long a plain pass took."""
        self.plain_seconds = seconds if self.plain_seconds is None else 0.8 * self.plain_seconds + 0.2 * seconds

    def report(self, guessed: int, accepted: int, seconds: float) -> None:
        """Learn how a guess went and how long its pass took."""
        assert self.plain_seconds is not None
        if accepted == guessed:
            self.length = min(2 * self.length + 1, self.longest)
        else:
            self.length = max(accepted + 1, self.shortest)
        if (accepted + 1) * self.plain_seconds >= seconds:
            self.failures = 0
        else:
            self.failures += 1
            self.pause = min(2**self.failures, self.longest_pause)


class Speculative:
    """Decodes one text with a draft. A batch of texts has one such decoder each.

    `state` has read the text but for `unread`, the tokens at its end. A chunk of unread and guessed tokens is read by
    a copy of the state; when all guesses hold, the copy becomes the state, otherwise the accepted tokens stay unread
    and are read with the next chunk by the untouched state.
    """

    def __init__(
        self,
        model: WaveletLM,
        prompt: Sequence[int],
        chain: SamplerChain,
        settings: GenerationSettings,
        seed: RowSeed,
        drafts: DraftSource,
    ):
        self.model = model
        self.device = next(model.parameters()).device
        self.sampler = RowSampler(chain, chain.start(prompt_tensors(model, [prompt])), seed)
        self.draft = drafts.start(prompt)
        self.pace = Pace()
        self.state, self.logits = prefill(model, [prompt], settings.prefill_tokens)
        self.copy = self.state.clone()
        self.unread: list[int] = []
        self.ready: deque[tuple[int, Tensor]] = deque()
        self._take(self.logits, [])

    def choose(self) -> Tensor:
        if not self.ready:
            self._verify()
        token, self.logits = self.ready.popleft()
        return torch.tensor([token], device=self.device)

    def advance(self, tokens: Tensor) -> None:
        """The token is read with the next chunk."""

    def keep(self, rows: Sequence[int]) -> None:
        """There is but one row."""

    def _verify(self) -> None:
        length = self.pace.next_length() if len(self.unread) <= Pace.longest else 0
        begin = time.perf_counter()
        guess = self.draft.propose(length, self.sampler.fork()) if length else []
        state = self.copy.copy_(self.state) if guess else self.state
        chunk = torch.tensor([self.unread + guess], device=self.device)
        hidden = self.model.hidden(chunk, state)
        accepted = self._take(self.model.head(hidden[0, -1 - len(guess) :]), guess)
        seconds = time.perf_counter() - begin
        if guess:
            self.pace.report(len(guess), accepted, seconds)
        elif chunk.shape[1] == 1:
            self.pace.passed(seconds)
        if accepted == len(guess):
            if guess:
                self.state, self.copy = state, self.state
            self.unread = self.unread[-1:]

    def _take(self, logits: Tensor, guess: list[int]) -> int:
        """Draw tokens from logits (n, V) as long as the guess holds; returns how many of it were right."""
        tokens: list[int] = []
        for place, row in enumerate(logits.split(1)):
            tokens.append(self.sampler.pick(row))
            self.ready.append((tokens[-1], row))
            if place < len(guess) and tokens[-1] != guess[place]:
                break
        self.draft.extend(tokens)
        self.unread += tokens
        return len(tokens) - 1
