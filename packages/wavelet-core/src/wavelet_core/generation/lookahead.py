"""Lookahead: take the token with the best future."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wavelet_core.generation.context import Contexts
from wavelet_core.generation.sampling import SamplerChain
from wavelet_core.generation.settings import LookaheadSettings
from wavelet_core.state import State


def look_ahead(
    contexts: Contexts, rows: Sequence[int], chain: SamplerChain, memory: State, search: LookaheadSettings
) -> tuple[list[int], Contexts, State]:
    """For every row, of the k most probable tokens the one whose greedy continuation is the most probable.

    Each candidate is continued greedily by d tokens, all candidates of all rows in one batch on copies of the contexts;
    the score is the sum of the d + 1 log-probabilities under the samplers' distribution. The first of the d steps has
    read the candidate itself, so the contexts and the samplers' memory after the winners come back with them: a token
    costs d steps of a k times larger batch.

    memory: of these rows. The token is -1 for a row whose logits are not finite.
    """
    distribution = chain(contexts.logits[list(rows)], memory).log_softmax(-1)
    scores, candidates = distribution.topk(min(search.candidates, distribution.shape[-1]))
    count = candidates.shape[1]
    contexts, memory = contexts.select([row for row in rows for _ in range(count)]), memory.repeat(count)
    everyone = range(contexts.rows)
    tokens, scores = candidates.flatten(), scores.flatten()
    for step in range(search.depth):
        chain.observe(tokens, memory)
        contexts.step(tokens, everyone)
        if step == 0:
            after, memory_after = contexts.select(everyone), memory.clone()
        best, tokens = chain(contexts.logits, memory).log_softmax(-1).max(-1)
        scores = scores + best
    scores = scores.view(len(rows), count)
    winners = (torch.arange(len(rows), device=scores.device) * count + scores.argmax(-1)).tolist()
    chosen = candidates.flatten()[winners].masked_fill(scores.isnan().any(-1), -1)
    return chosen.tolist(), after.select(winners), memory_after[winners]
