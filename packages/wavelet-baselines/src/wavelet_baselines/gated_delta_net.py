"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wavelet_baselines.feed_forward import Activation
from wavelet_baselines.mixer_block import MixerBlock
from wavelet_baselines.residual_stack import ResidualStack, ResidualStackConfig
from wavelet_core.config import ModelShape
from wavelet_memory.gated_delta import GatedDeltaMemory


class GatedDeltaNet(ResidualStack):
    """Gated DeltaNet: blocks of a gated delta-rule mixer and a feed-forward network."""

    class Config(ResidualStackConfig):
        kind: Literal["gated_delta_net"] = "gated_delta_net"
        heads: int = Field(3, ge=1, description="heads, each with a memory of key_width x value_width")
        key_width: int = Field(64, ge=1, description="K, channels of a head's queries and keys")
        value_width: int = Field(64, ge=1, description="D, channels of a head's values")
        convolution: int = Field(4, ge=2, description="positions that the short convolutions span")
        expansion: float = Field(4.0, gt=0, description="hidden width of the feed-forward network in multiples of C")
        activation: Activation = Field("relu_squared", description="of the feed-forward network")

    def __init__(self, config: Config):
        memory = GatedDeltaMemory.Config(
            heads=config.heads,
            key_width=config.key_width,
            value_width=config.value_width,
            convolution=config.convolution,
            zero_output=config.zero_outputs,
        )
        shape = ModelShape(width=config.width, levels=1, layers=config.layers)
        blocks = (MixerBlock(config, GatedDeltaMemory(memory, shape)) for _ in range(config.layers))
        super().__init__(config, blocks)
