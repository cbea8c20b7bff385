"""Decoders: how the next token of a batch of rows is chosen and then read.

`choose` returns a token per row, (B,), `logits` are the model's own for that position, (B, V), `advance` makes the
model read the chosen tokens, and `keep` drops the rows that have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavelet_core.generation.context import open_context
from wavelet_core.generation.sampling import RowSeed, SamplerChain, draw
from wavelet_core.generation.settings import GenerationSettings, LookaheadSettings

if TYPE_CHECKING:
    from wavelet_core.model import WaveletLM


def prompt_tensors(model: WaveletLM, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Prompts as tensors of token ids on the model's device."""
    device = next(model.parameters()).device
    return [torch.tensor(prompt, device=device) for prompt in prompts]


class Sampling:
    """Draw every token from the distribution that the samplers shape; all rows in one batch."""

    def __init__(
        self,
        model: WaveletLM,
        prompts: Sequence[Sequence[int]],
        chain: SamplerChain,
        settings: GenerationSettings,
        seeds: Sequence[RowSeed],
    ):
        self.chain = chain
        self.memory = chain.start(prompt_tensors(model, prompts))
        self.context = open_context(settings.context, model, prompts, settings.prefill_tokens)
        self.seeds = list(seeds)
        self.position = 0

    @property
    def logits(self) -> Tensor:
        """The model's own logits of the next token, (B, V)."""
        return self.context.logits

    def choose(self) -> Tensor:
        shaped = self.chain(self.logits, self.memory)
        return draw(shaped, [seed.uniform(self.position) for seed in self.seeds])

    def advance(self, tokens: Tensor) -> None:
        self.position += 1
        self.chain.observe(tokens, self.memory)
        self.context.step(tokens)

    def keep(self, rows: Sequence[int]) -> None:
        self.context = self.context.select(rows)
        self.memory = self.memory[rows]
        self.seeds = [self.seeds[row] for row in rows]


class Lookahead(Sampling):
    """Search: of the k most probable tokens take the one whose greedy continuation is the most probable.

    Each candidate is continued greedily by d tokens, all candidates of all rows in one batch on copies of the state;
    the score is the sum of the d + 1 log-probabilities under the samplers' distribution. The first of the d steps has
    read the candidate itself, so the winner's state is kept, and a token costs d steps of a k times larger batch.
    """

    def __init__(
        self,
        model: WaveletLM,
        prompts: Sequence[Sequence[int]],
        chain: SamplerChain,
        settings: GenerationSettings,
        seeds: Sequence[RowSeed],
        search: LookaheadSettings,
    ):
        super().__init__(model, prompts, chain, settings, seeds)
        self.search = search

    def choose(self) -> Tensor:
        distribution = self.chain(self.logits, self.memory).log_softmax(-1)
        scores, candidates = distribution.topk(min(self.search.candidates, distribution.shape[-1]))
        rows, count = candidates.shape
        context = self.context.select([row for row in range(rows) for _ in range(count)])
        memory = self.memory.repeat(count)
        tokens, scores = candidates.flatten(), scores.flatten()
        for step in range(self.search.depth):
            self.chain.observe(tokens, memory)
            context.step(tokens)
            if step == 0:
                after_candidates, memory_after = context.select(range(rows * count)), memory.clone()
            best, tokens = self.chain(context.logits, memory).log_softmax(-1).max(-1)
            scores = scores + best
        winners = scores.view(rows, count).argmax(-1)
        chosen = (torch.arange(rows, device=winners.device) * count + winners).tolist()
        self._next = after_candidates.select(chosen), memory_after[chosen]
        return candidates.flatten()[chosen]

    def advance(self, tokens: Tensor) -> None:
        self.position += 1
        self.context, self.memory = self._next

    def keep(self, rows: Sequence[int]) -> None:
        context, memory = self._next
        self._next = context.select(rows), memory[rows]
