"""Temperature: constant, or falling where the model is uncertain."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from wavelet_core.config import ComponentConfig
from wavelet_core.generation.samplers.sampler import Memory, Sampler


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of the distributions softmax(logits) over the last dimension; -inf logits count for nothing."""
    log_probabilities = logits.log_softmax(-1)
    return torch.special.entr(log_probabilities.exp()).sum(-1)


class Temperature(Sampler):
    """Divide the logits by a constant; 0 keeps the most probable token alone."""

    class Config(ComponentConfig):
        kind: Literal["temperature"] = "temperature"
        temperature: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="divisor of the logits; 1 changes nothing, 0 is greedy"
        )

    config: Config

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        if self.config.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
        return logits / self.config.temperature


class EntropyAdaptive(Sampler):
    """A temperature that falls as the model's uncertainty rises.

    temperature = maximum - (maximum - minimum) * H / ln V, where H is the entropy of the incoming distribution in
    nats: careful where many tokens are plausible, free where few are.
    """

    class Config(ComponentConfig):
        kind: Literal["entropy_adaptive"] = "entropy_adaptive"
        minimum: float = Field(0.3, gt=0, allow_inf_nan=False, description="temperature of a uniform distribution")
        maximum: float = Field(1.5, gt=0, allow_inf_nan=False, description="temperature of a certain distribution")

        @model_validator(mode="after")
        def _ordered(self) -> EntropyAdaptive.Config:
            if self.minimum > self.maximum:
                raise ValueError(f"minimum={self.minimum} is above maximum={self.maximum}; swap them")
            return self

    config: Config

    def temperature(self, logits: Tensor) -> Tensor:
        """The temperature for each row, (B, 1)."""
        certainty = 1 - entropy_of(logits).unsqueeze(-1) / max(math.log(logits.shape[-1]), 1e-9)
        return self.config.minimum + (self.config.maximum - self.config.minimum) * certainty

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        return logits / self.temperature(logits)
