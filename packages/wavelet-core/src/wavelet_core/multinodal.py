"""Multinodal models: several complete models ("cells") with combined logits (docs/model.md, section 7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.checkpoint import Pretrained
from wavelet_core.config import ModelConfig
from wavelet_core.linear import Linear
from wavelet_core.model import WaveletLM, cross_entropy
from wavelet_core.state import State, Tree


class BaggedEmbedding(nn.Module):
    """A token embedding whose bagged columns are a constant: the cell never sees those features.

    Which columns is drawn from the cell's seed. Shapes: (B, T) -> (B, T, C).
    """

    bagged: Tensor

    def __init__(self, embedding: nn.Embedding, kept: int, value: float, seed: int):
        super().__init__()
        self.embedding = embedding
        self.kept, self.value, self.seed = kept, value, seed
        self.register_buffer("bagged", torch.zeros(embedding.embedding_dim, dtype=torch.bool), persistent=False)
        self.reset_buffers()

    @property
    def weight(self) -> Tensor:
        return self.embedding.weight

    def reset_buffers(self) -> None:
        """Draw the bagged columns from the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.bagged), generator=generator, device="cpu")
        self.bagged.zero_()
        self.bagged[order[self.kept :].to(self.bagged.device)] = True

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens).masked_fill(self.bagged, self.value)


class CrossCellGate(nn.Module):
    """h_i <- h_i * (1 + tanh(W mean of the other cells' h)). W starts at zero. Shapes: n tensors (B, T, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = Linear(width, width, bias=False)
        nn.init.zeros_(self.proj.weight)

    def forward(self, cells: list[Tensor]) -> list[Tensor]:
        if len(cells) == 1:
            return cells
        total = torch.stack(cells).sum(0)
        return [h * (1 + torch.tanh(self.proj((total - h) / (len(cells) - 1)))) for h in cells]


class CombinedHead(nn.Module):
    """The cells' heads and the combination of their logits. Shapes: (B, T, n C) -> (B, T, V)."""

    def __init__(self, heads: list[nn.Module], average: bool):
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.average = average

    def forward(self, hidden: Tensor) -> Tensor:
        parts = hidden.chunk(len(self.heads), dim=-1)
        logits = torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)])
        return logits.mean(0) if self.average else logits.sum(0)


class MultinodalLM(nn.Module, Pretrained):
    """Several WaveletLMs, each built under its own seed, whose logits are averaged or summed (section 7).

    Without cross-cell gating the cells are independent. With it they run block by block, a gate after every
    `gate_interval` blocks, and see neither the per-layer embedding nor cross-window state.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        multinodal = config.multinodal
        assert multinodal is not None
        self.config = config
        self.cells = nn.ModuleList(self._cell(config, seed) for seed in multinodal.seeds[: multinodal.cells])
        self.head = CombinedHead([cell.head for cell in self.cells], multinodal.combination == "average")  # type: ignore[misc]
        self.gates: nn.ModuleList | None = None
        self.interval = multinodal.gate_interval
        if multinodal.cross_cell_gating:
            count = -(-config.layers // multinodal.gate_interval)
            self.gates = nn.ModuleList(CrossCellGate(multinodal.width) for _ in range(count))

    @staticmethod
    def _cell(config: ModelConfig, seed: int) -> WaveletLM:
        multinodal = config.multinodal
        assert multinodal is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cell = WaveletLM(config.cell)
        kept = multinodal.features_per_cell
        if kept is not None and kept < multinodal.width:
            cell.embedding = BaggedEmbedding(cell.embedding, kept, multinodal.bagged_value, seed)  # type: ignore[assignment]
        return cell

    def new_state(
        self, batch_size: int = 1, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """A silent streaming state for `batch_size` independent texts: one of each cell."""
        tree: Tree = {
            str(index): cell.new_state(batch_size, device, dtype).tree  # type: ignore[operator]
            for index, cell in enumerate(self.cells)
        }
        return State(tree, batch_size)

    def _cell_state(self, state: State | None, index: int) -> State | None:
        if state is None:
            return None
        tree = state.tree[str(index)]
        assert isinstance(tree, dict)
        return State(tree, state.batch_size)

    def begin_window(self, state: State) -> State:
        """Start the next window of the same text, in place."""
        for index, cell in enumerate(self.cells):
            cell.begin_window(self._cell_state(state, index))  # type: ignore[operator]
        return state

    def embed(self, tokens: Tensor) -> Tensor:
        """The cells' scaled token embeddings side by side, (B, T, n C)."""
        return torch.cat([cell.embed(tokens) for cell in self.cells], dim=-1)  # type: ignore[operator]

    def forward(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """Combined logits (B, T, V) of tokens (B, T)."""
        return self.head(self.hidden(tokens, state))

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """The cells' normalised outputs side by side, (B, T, n C)."""
        if self.gates is None:
            outputs = [cell.hidden(tokens, self._cell_state(state, i)) for i, cell in enumerate(self.cells)]  # type: ignore[operator]
        else:
            outputs = list(self._gated(tokens, state))
        return torch.cat(
            [cell.head_dropout(h) for cell, h in zip(self.cells, outputs, strict=True)],  # type: ignore[operator]
            dim=-1,
        )

    def _gated(self, tokens: Tensor, state: State | None) -> Iterator[Tensor]:
        assert self.gates is not None
        cells: list[Any] = list(self.cells)
        trees: list[Any] = [{} if state is None else state.tree[str(i)]["blocks"] for i in range(len(cells))]  # type: ignore[index]
        hidden = [cell.embedding_dropout(cell.embed(tokens)) for cell in cells]
        means: list[Tensor | None] = [None] * len(hidden)
        silence = torch.zeros_like(hidden[0])
        for layer in range(self.config.layers * self.config.loop_iterations):
            position = layer % self.config.layers
            for i, cell in enumerate(cells):
                if not cell.skips(position):
                    block, tree = cell.applications[position], trees[i].get(str(layer))
                    hidden[i], means[i] = cell.run_block(block, hidden[i], silence, means[i], tree)
            if (position + 1) % self.interval == 0:
                hidden = self.gates[position // self.interval](hidden)
        for cell, h in zip(cells, hidden, strict=True):
            yield cell.norm(h)

    def loss(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
        """Training loss: the cross entropy of the combined logits, in nats per token, times 1 / sqrt(n)."""
        return cross_entropy(self.forward(tokens, state), targets) * len(self.cells) ** -0.5


def build_model(config: ModelConfig) -> WaveletLM | MultinodalLM:
    """The model that a configuration describes, freshly initialised."""
    return WaveletLM(config) if config.multinodal is None else MultinodalLM(config)
