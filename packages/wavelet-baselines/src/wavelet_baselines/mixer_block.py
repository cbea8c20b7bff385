"""A block of two halves: one mixes positions, one computes at each of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wavelet_baselines.feed_forward import FeedForward
from wavelet_core.state import Tree


class MixerBlock(nn.Module):
    """A token mixer and a feed-forward network, each behind an RMS norm and added to the stream (pre-norm).

    config: has width, expansion, activation and zero_outputs. Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(self, config: Any, mixer: Any):
        super().__init__()
        self.norm_mixer = nn.RMSNorm(config.width)
        self.mixer = mixer
        self.norm_feed_forward = nn.RMSNorm(config.width)
        hidden = round(config.expansion * config.width)
        self.feed_forward = FeedForward(config.width, hidden, config.activation, config.zero_outputs)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        state: Tree = self.mixer.new_state(batch_size, device, dtype)
        return state

    def forward(self, x: Tensor, state: Tree | None = None) -> Tensor:
        x = x + self.mixer(self.norm_mixer(x), state)
        fed: Tensor = x + self.feed_forward(self.norm_feed_forward(x))
        return fed
