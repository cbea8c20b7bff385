"""Wavelet-coherence drift control: sharpen the distribution when the text wanders away from its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.config import ComponentConfig
from wavelet_core.generation.samplers.sampler import Memory, Sampler
from wavelet_core.language_model import LanguageModel


def signature(embeddings: Tensor, lengths: Tensor, levels: int) -> Tensor:
    """What a text is about: the direction of its mean coarse approximation, (B, C).

    embeddings: token embeddings (B, T, C), of which the last `lengths` (B,) positions of each row count.

    The approximation of an undecimated Haar wavelet after `levels` levels is, up to a factor, the sum of the last
    2^levels positions (docs/model.md, section 3, with zeros before the start). In its mean over all positions every
    position is therefore counted as often as there are positions within 2^levels ahead of it, and that weighted sum
    is what this computes.
    """
    steps = embeddings.shape[1]
    ahead = torch.arange(steps, 0, -1, device=embeddings.device)
    inside = ahead <= lengths.unsqueeze(-1)
    weights = ahead.clamp(max=2**levels) * inside
    return torch.einsum("bt,btc->bc", weights.float(), embeddings.float())


def drift(recent: Tensor, prompt: Tensor) -> Tensor:
    """1 - cosine between two signatures (B, C): 0 for the same direction, 2 for the opposite one; (B,)."""
    return 1 - F.cosine_similarity(recent, prompt, dim=-1)


class WaveletCoherence(Sampler):
    """Lower the temperature while the text's drift from its prompt is above a threshold.

    Drift compares the coarse wavelet approximations of the prompt and of the last `window` tokens (see `signature`
    and `drift`). The logits are multiplied by 1 + strength * (drift - threshold) where that is above 1.
    """

    class Config(ComponentConfig):
        kind: Literal["wavelet_coherence"] = "wavelet_coherence"
        levels: int = Field(4, ge=1, le=20, description="wavelet levels of the approximation that is compared")
        window: int = Field(64, ge=1, description="tokens of recent text that are compared with the prompt")
        threshold: float = Field(0.3, ge=0, le=2, description="drift that is tolerated")
        strength: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="how much drift above the threshold sharpens the distribution"
        )

    config: Config

    def __init__(self, config: Config, model: LanguageModel):
        super().__init__(config, model)
        self.embed = model.embed

    def start(self, prompts: Sequence[Tensor]) -> Memory:
        window, device = self.config.window, prompts[0].device
        tails = [prompt[-window:] for prompt in prompts]
        recent = torch.stack([F.pad(tail, (window - len(tail), 0)) for tail in tails])
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        signatures = [
            signature(self.embed(prompt.unsqueeze(0)), lengths[row : row + 1], self.config.levels)
            for row, prompt in enumerate(prompts)
        ]
        return {"recent": recent, "length": lengths.clamp(max=window), "prompt": torch.cat(signatures)}

    def observe(self, tokens: Tensor, memory: Memory) -> None:
        recent, length = memory["recent"], memory["length"]
        recent.copy_(torch.cat([recent[:, 1:], tokens.unsqueeze(-1)], dim=1))
        length.add_(1).clamp_(max=self.config.window)

    def drift(self, memory: Memory) -> Tensor:
        """The drift of each row's recent text from its prompt, (B,)."""
        recent = signature(self.embed(memory["recent"]), memory["length"], self.config.levels)
        return drift(recent, memory["prompt"])

    def __call__(self, logits: Tensor, memory: Memory) -> Tensor:
        excess = self.drift(memory) - self.config.threshold
        return logits * (1 + self.config.strength * excess.clamp(min=0)).unsqueeze(-1)
