"""What the families share: an embedding, blocks that add to a residual stream, a norm and a head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core.checkpoint import Pretrained
from wavelet_core.config import LanguageModelConfig
from wavelet_core.language_model import head_cross_entropy
from wavelet_core.linear import Linear
from wavelet_core.state import State, Tree


class ResidualStackConfig(LanguageModelConfig):
    """Sizes and initial weights that every family has."""

    width: int = Field(192, ge=1, description="C, channels of the residual stream")
    layers: int = Field(4, ge=1, description="blocks applied one after the other")
    tied_embedding: bool = Field(False, description="the head uses the token embedding's weights")
    embedding_std: float = Field(0.02, gt=0, description="standard deviation of the initial token embeddings")
    head_std: float = Field(0.001, gt=0, description="standard deviation of the head's initial weights, unless tied")
    zero_outputs: bool = Field(True, description="what a block adds to the residual stream starts at zero")


class ResidualStack(nn.Module, Pretrained):
    """Embedding, blocks, RMS norm and head. A block maps (B, T, C) and its state to (B, T, C)."""

    config: Any

    def __init__(self, config: ResidualStackConfig, blocks: Iterable[nn.Module]):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(config.width)
        self.head = Linear(config.width, config.vocabulary, bias=False)
        if config.tied_embedding:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=config.head_std)

    def new_state(
        self, batch_size: int = 1, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """A silent streaming state for `batch_size` independent texts, on the model's device and in its type."""
        device = torch.device(device) if device is not None else self.norm.weight.device
        dtype = dtype or self.norm.weight.dtype
        tree: Tree = {
            str(index): block.new_state(batch_size, device, dtype)  # type: ignore[operator]
            for index, block in enumerate(self.blocks)
        }
        return State(tree, batch_size)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (B, T, C)."""
        embedding: Tensor = self.embedding(tokens)
        return embedding

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """What the head reads, (B, T, C)."""
        x = self.embed(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, None if state is None else state.tree[str(index)])
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T); with a state, in continuation of what it has read."""
        logits: Tensor = self.head(self.hidden(tokens, state))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
        """The mean cross entropy in nats per token, a scalar."""
        return head_cross_entropy(self.head, self.hidden(tokens, state), targets)


def output_projection(features: int, width: int, zero: bool) -> Linear:
    """The last matrix of a block, which writes into the residual stream; zero at the start where asked."""
    projection = Linear(features, width, bias=False)
    if zero:
        nn.init.zeros_(projection.weight)
    return projection
