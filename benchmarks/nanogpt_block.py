"""GPT-2's Transformer as nanoGPT trains it, to compare training with: 14 blocks of width 256, 13.2 million parameters.

`wavelet bench train CONFIG --against benchmarks/nanogpt_block.py` trains both in turns. Run as a script, this does so
with the configuration that docs/benchmarks.md reports on, as it is and compiled.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wavelet_core import LanguageModelConfig, hookimpl
from wavelet_core.language_model import cross_entropy

CONFIGURATION = Path(__file__).parent / "configurations" / "training_speed.yaml"


class Attention(nn.Module):
    """Causal self-attention of several heads. Shapes: (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.project(read.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)). Shapes: (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    """Learned positions, Transformer blocks, a head tied to the embedding; it trains and does not stream."""

    class Config(LanguageModelConfig):
        kind: Literal["nanogpt"] = "nanogpt"
        width: int = Field(256, ge=1)
        layers: int = Field(14, ge=1)
        heads: int = Field(4, ge=1)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("project.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 * (2 * config.layers) ** -0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.head.weight = self.embedding.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads. Shapes: (B, T) -> (B, T, C)."""
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor, state: None = None) -> Tensor:
        return self.head(self.hidden(tokens))

    def loss(self, tokens: Tensor, targets: Tensor, state: None = None) -> Tensor:
        return cross_entropy(self(tokens), targets)


@hookimpl
def register_components(register: Any) -> None:
    register("model", Transformer)


if __name__ == "__main__":
    command = ["bench", "train", str(CONFIGURATION), "--against", __file__, "--compile", "both", *sys.argv[1:]]
    sys.exit(subprocess.run([sys.executable, "-m", "wavelet_cli", *command]).returncode)
