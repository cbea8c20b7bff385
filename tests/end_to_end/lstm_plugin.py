"""A model family of somebody else's: an LSTM (Hochreiter & Schmidhuber 1997). A test installs it as a plugin."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wavelet_core import LanguageModelConfig, State, hookimpl
from wavelet_core.language_model import head_cross_entropy


class LSTMLayer(nn.Module):
    """One LSTM layer over (B, T, C); h and c (B, C) are what it has read."""

    def __init__(self, width: int):
        super().__init__()
        self.input = nn.Linear(width, 4 * width)
        self.recurrent = nn.Linear(width, 4 * width, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for position in self.input(x).unbind(1):
            enter, keep, new, leave = (position + self.recurrent(h)).chunk(4, dim=-1)
            c = keep.sigmoid() * c + enter.sigmoid() * new.tanh()
            h = leave.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), h, c


class LSTM(nn.Module):
    """Layers of LSTM between an embedding and a head."""

    class Config(LanguageModelConfig):
        kind: Literal["lstm"] = "lstm"
        channels: int = Field(16, ge=1, description="channels of every layer")
        depth: int = Field(1, ge=1, description="layers")

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.channels)
        self.layers = nn.ModuleList(LSTMLayer(config.channels) for _ in range(config.depth))
        self.head = nn.Linear(config.channels, config.vocabulary)

    def new_state(self, batch_size: int = 1, device: Any = None, dtype: torch.dtype | None = None) -> State:
        like = next(self.parameters())
        silence = torch.zeros(batch_size, self.config.channels, device=device or like.device, dtype=dtype or like.dtype)
        layers = range(self.config.depth)
        return State({str(layer): {"h": silence.clone(), "c": silence.clone()} for layer in layers}, batch_size)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        x = self.embed(tokens)
        tree: Any = self.new_state(len(tokens), x.device, x.dtype).tree if state is None else state.tree
        for name, layer in self.layers.named_children():
            x, h, c = layer(x, tree[name]["h"].clone(), tree[name]["c"].clone())
            tree[name]["h"].copy_(h.detach())
            tree[name]["c"].copy_(c.detach())
        return x

    def forward(self, tokens: Tensor, state: State | None = None) -> Tensor:
        return self.head(self.hidden(tokens, state))

    def loss(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
        return head_cross_entropy(self.head, self.hidden(tokens, state), targets)


@hookimpl
def register_components(register: Any) -> None:
    register("model", LSTM)
