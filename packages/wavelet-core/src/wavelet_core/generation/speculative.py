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

import torch
from torch import Tensor

from wavelet_core.generation.context import prefill
from wavelet_core.generation.drafts import DraftSource
from wavelet_core.generation.sampling import RowSampler, RowSeed, SamplerChain
from wavelet_core.generation.session import DecodingSession
from wavelet_core.kernels import as_single_rows
from wavelet_core.state import State, recording


class Pace:
    """How many tokens to guess: as many as yield the most tokens per second.

    How often a guess is right is counted for every strength of its evidence, the recent past weighing more; each token
    of a guess goes by one token more than the one before it. What a pass costs is measured by the clock, since it
    depends on the machine and the type of the weights, for every length of the chunk that it reads.
    """

    longest_chunk = 16
    strongest = 5
    memory = 0.98

    def __init__(self) -> None:
        self.right = [1.0] * (self.strongest + 1)
        self.tried = [2.0] * (self.strongest + 1)
        self.seconds: dict[int, float] = {}
        self.warm: set[int] = set()

    def next_length(self, evidence: int, unread: int = 1) -> int:
        """The number of tokens to guess now, where `unread` tokens are to be read anyway."""
        if not evidence or not self.seconds:
            return 0
        # Lengths that were never measured are tried, but not far beyond those that were.
        most = min(self.longest_chunk, 2 * max(self.seconds)) - unread
        length, best = 0, 1 / self._cost(unread)
        tokens = chance = 1.0
        for guessed in range(1, most + 1):
            kind = min(evidence + guessed - 1, self.strongest)
            chance *= self.right[kind] / self.tried[kind]
            tokens += chance
            rate = tokens / self._cost(unread + guessed)
            if rate > best:
                length, best = guessed, rate
        return length

    def _cost(self, length: int) -> float:
        """Seconds of a pass over a chunk: measured, or between those of the nearest lengths that were."""
        below = max(known for known in self.seconds if known <= length)  # a plain pass is always measured first
        above = min((known for known in self.seconds if known >= length), default=below)
        if above == below:
            return self.seconds[below]
        share = (length - below) / (above - below)
        return (1 - share) * self.seconds[below] + share * self.seconds[above]

    def passed(self, length: int, seconds: float) -> None:
        """Learn how long a pass over a chunk took. The first one of a length warms up and does not count."""
        if length not in self.warm:
            self.warm.add(length)
            return
        before = self.seconds.get(length, seconds)
        self.seconds[length] = before + 0.2 * (min(seconds, 2 * before) - before)

    def verified(self, evidence: int, guessed: int, accepted: int) -> None:
        """Learn how a guess went."""
        for place in range(min(accepted + 1, guessed)):
            kind = min(evidence + place, self.strongest)
            self.right[kind] += place < accepted
            self.tried[kind] += 1
        # Forgetting leads back to an even chance, so that what never worked is tried again some day.
        self.right = [1 + self.memory * (right - 1) for right in self.right]
        self.tried = [2 + self.memory * (tried - 2) for tried in self.tried]


class Speculative:
    """Decodes one text with a draft. A batch of texts has one such decoder each.

    `state` has read the text but for `unread`, the tokens at its end. It reads them and the guess in one chunk, and
    goes back to the last token that was right. A state that cannot go back (a module wrote it otherwise than by
    `move_on`) is restored from a copy instead, and the accepted tokens are read again with the next chunk.
    """

    def __init__(
        self,
        session: DecodingSession,
        prompt: Sequence[int],
        chain: SamplerChain,
        seed: RowSeed,
        drafts: DraftSource,
        chunk_tokens: int,
    ):
        self.session = session
        self.sampler = RowSampler(chain, chain.start([torch.tensor(prompt, device=session.device)]), seed)
        self.draft = drafts.start(prompt)
        self.pace = Pace()
        self.state, logits = prefill(session, [prompt], chunk_tokens)
        self.can_go_back = False
        self.copy: State | None = None
        self.unread: list[int] = []
        self.ready: deque[tuple[int, Tensor]] = deque()
        self._take(logits, [])

    def next(self) -> tuple[int, Tensor]:
        """The next token, and the model's own logits (1, V) for its position. Raises GenerationError."""
        if not self.ready:
            self._verify()
        return self.ready.popleft()

    def _verify(self) -> None:
        begin = time.perf_counter()
        evidence = self.draft.evidence()
        length = self.pace.next_length(evidence, len(self.unread))
        guess = self.draft.propose(length, self.sampler.fork()) if length else []
        if guess and not self.can_go_back:
            self.copy = self.state.clone() if self.copy is None else self.copy.copy_(self.state)
        chunk = torch.tensor([self.unread + guess], device=self.session.device)
        with recording() as record, as_single_rows():
            hidden = self.session.hidden(chunk, self.state)
            logits = self.session.head(hidden[0, -1 - len(guess) :])
        accepted = self._take(logits, guess)
        if guess:
            self.can_go_back = record.covers(self.state)
        wrong = len(guess) - accepted
        if wrong and not self.can_go_back:
            assert self.copy is not None
            self.state.copy_(self.copy)
        else:
            if wrong:
                record.rewind(wrong)
            self.unread = self.unread[-1:]
        self.pace.passed(chunk.shape[1], time.perf_counter() - begin)
        if guess:
            self.pace.verified(evidence, len(guess), accepted)

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
