"""Repetition penalty: tokens that the text already holds become less likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from wavelet_core.config import ComponentConfig
from wavelet_core.generation.samplers.sampler import Memory, Sampler
from wavelet_core.language_model import LanguageModel


class RepetitionPenalty(Sampler):
    """Divide positive logits of seen tokens by the penalty, and multiply negative ones by it (Keskar et al. 2019).

    Seen are all tokens of the prompt and of the text so far, remembered as one bit per vocabulary entry.
    """

    class Config(ComponentConfig):
        kind: Literal["repetition_penalty"] = "repetition_penalty"
        penalty: float = Field(
            1.2, gt=0, allow_inf_nan=False, description="above 1 discourages seen tokens, below 1 encourages them"
        )

    config: Config

    def __init__(self, config: Config, model: LanguageModel):
        super().__init__(config, model)
        self.vocabulary_size = model.config.vocabulary

    def start(self, prompts: Sequence[Tensor]) -> Memory:
        seen = torch.zeros(len(prompts), self.vocabulary_size, dtype=torch.bool, device=prompts[0].device)
        for row, prompt in zip(seen, prompts, strict=True):
            row[prompt] = True
        return {"seen": seen}

    def observe(self, tokens: Tensor, memory: Memory) -> None:
        memory["seen"].scatter_(-1, tokens.unsqueeze(-1), True)

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        penalized = torch.where(logits > 0, logits / self.config.penalty, logits * self.config.penalty)
        return torch.where(memory["seen"], penalized, logits)
