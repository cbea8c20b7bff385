"""Truncation: top-k, top-p and min-p drop the tail of the distribution."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from wavelet_core.config import ComponentConfig
from wavelet_core.generation.samplers.sampler import Memory, Sampler


class TopK(Sampler):
    """Keep the k most probable tokens."""

    class Config(ComponentConfig):
        kind: Literal["top_k"] = "top_k"
        k: int = Field(50, ge=1, description="tokens kept; more than the vocabulary keeps all")

    config: Config

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        values, indices = logits.topk(min(self.config.k, logits.shape[-1]))
        return torch.full_like(logits, -torch.inf).scatter_(-1, indices, values)


class TopP(Sampler):
    """Keep the smallest set of most probable tokens whose probability reaches p (Holtzman et al. 2020).

    The most probable token always stays.
    """

    class Config(ComponentConfig):
        kind: Literal["top_p"] = "top_p"
        p: float = Field(0.9, gt=0, le=1, description="probability mass to keep; 1 keeps all")

    config: Config

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        if self.config.p == 1:
            return logits
        size = logits.shape[-1]
        normalizer = logits.logsumexp(-1, keepdim=True)
        # Sorting a whole vocabulary costs more than the rest of sampling; the head of the list is nearly always enough.
        for candidates in (min(64, size), min(1024, size), size):
            values, indices = logits.topk(candidates) if candidates < size else logits.sort(descending=True)
            probabilities = (values - normalizer).exp()
            before = probabilities.cumsum(-1) - probabilities
            if candidates == size or bool((before[:, -1] >= self.config.p).all()):
                break
        kept = values.masked_fill(before >= self.config.p, -torch.inf)
        return torch.full_like(logits, -torch.inf).scatter_(-1, indices, kept)


class MinP(Sampler):
    """Keep tokens at least p times as probable as the most probable one (Nguyen et al. 2024)."""

    class Config(ComponentConfig):
        kind: Literal["min_p"] = "min_p"
        p: float = Field(0.05, ge=0, le=1, description="least probability kept, relative to the most probable token's")

    config: Config

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        if self.config.p == 0:
            return logits
        best = logits.amax(-1, keepdim=True)
        return logits.masked_fill((logits - best).exp() < self.config.p, -torch.inf)
