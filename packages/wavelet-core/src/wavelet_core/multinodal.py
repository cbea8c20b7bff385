"""Multinodal models: several complete models ("cells") with combined logits (docs/model.md, section 7)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wavelet_core.checkpoint import Pretrained
from wavelet_core.config import ModelConfig
from wavelet_core.language_model import head_cross_entropy
from wavelet_core.linear import Linear
from wavelet_core.model import WaveletLM
from wavelet_core.state import State, Tree


class MultinodalConfig(ModelConfig):
    """The fields of `model` for one cell, and how several cells are made and combined."""

    kind: Literal["multinodal"] = "multinodal"  # type: ignore[assignment]
    cells: int = Field(2, ge=1, description="number of cells")
    seeds: list[int] = Field(
        [42, 137], description="one seed a cell: its initial weights and its bagged columns come from it"
    )
    combination: Literal["average", "sum"] = Field("average", description="how the cells' logits are combined")
    cross_cell_gating: bool = Field(False, description="cells gate each other's residual stream between blocks")
    gate_interval: int = Field(1, ge=1, description="blocks between two cross-cell gates")
    features_per_cell: int | None = Field(
        None, ge=1, description="embedding columns that a cell starts with (feature bagging); null keeps all"
    )
    bagged_value: float = Field(1e-6, description="what the other embedding columns are set to before training")

    @property
    def cell(self) -> ModelConfig:
        """The configuration of one cell."""
        fields = self.model_dump(include=set(ModelConfig.model_fields) - {"kind"})
        return ModelConfig.model_validate(fields)

    @model_validator(mode="after")
    def _check_cells(self) -> MultinodalConfig:
        if len(self.seeds) < self.cells:
            raise ValueError(f"seeds has {len(self.seeds)} entries but cells={self.cells}; give one seed per cell")
        if self.features_per_cell is not None and self.features_per_cell > self.width:
            raise ValueError(
                f"features_per_cell={self.features_per_cell} is larger than width={self.width}; "
                "choose at most the width, or null to keep all"
            )
        return self


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

    The model family `multinodal`. Without cross-cell gating the cells are independent. With it they run block by block,
    a gate after every `gate_interval` blocks, and see neither the per-layer embedding nor cross-window state.
    """

    Config = MultinodalConfig
    resets_at_documents = True

    def __init__(self, config: MultinodalConfig):
        super().__init__()
        self.config = config
        self.cells = nn.ModuleList(self._cell(config, seed) for seed in config.seeds[: config.cells])
        self.head = CombinedHead([cell.head for cell in self.cells], config.combination == "average")  # type: ignore[misc]
        self.gates: nn.ModuleList | None = None
        if config.cross_cell_gating:
            count = -(-config.layers // config.gate_interval)
            self.gates = nn.ModuleList(CrossCellGate(config.width) for _ in range(count))

    @staticmethod
    def _cell(config: MultinodalConfig, seed: int) -> WaveletLM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cell = WaveletLM(config.cell)
        if config.features_per_cell is not None:
            columns = list(range(config.width))
            random.Random(seed).shuffle(columns)
            with torch.no_grad():
                cell.embedding.weight[:, columns[: config.width - config.features_per_cell]] = config.bagged_value
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

    def _cell_states(self, state: State | None) -> list[Any]:
        """Every cell's part of the state."""
        if state is None:
            return [None] * len(self.cells)
        parts = [State(tree, state.batch_size) for tree in state.tree.values()]  # type: ignore[arg-type]
        for part in parts:
            part.document_positions = state.document_positions
        return parts

    @property
    def carries_window(self) -> bool:
        """Whether training windows carry something over to the next ones of the same text."""
        return self.config.cross_window_state

    def begin_window(self, state: State) -> State:
        """Start the next window of the same text, in place."""
        for cell, part in zip(self.cells, self._cell_states(state), strict=True):
            cell.begin_window(part)  # type: ignore[operator]
        return state

    def embed(self, tokens: Tensor) -> Tensor:
        """The cells' scaled token embeddings side by side, (B, T, n C)."""
        return torch.cat([cell.embed(tokens) for cell in self.cells], dim=-1)  # type: ignore[operator]

    def forward(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """Combined logits (B, T, V) of tokens (B, T)."""
        return self.head(self.hidden(tokens, state))

    def hidden(self, tokens: Tensor, state: State | None = None) -> Tensor:
        """The cells' normalised outputs of the last pass side by side, (B, T, n C)."""
        for x in self.passes(tokens, state):
            last = x
        return last

    def loss(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
        """Training loss: the cross entropy of the combined logits, in nats per token, times 1 / sqrt(n).

        It is averaged over the loop iterations.
        """
        losses = [head_cross_entropy(self.head, x, targets) for x in self.passes(tokens, state)]
        return torch.stack(losses).mean() * len(self.cells) ** -0.5

    def passes(self, tokens: Tensor, state: State | None = None) -> Iterator[Tensor]:
        """The cells' normalised outputs of every pass of the stacks, after dropout and side by side, (B, T, n C)."""
        cells: list[Any] = list(self.cells)
        states = self._cell_states(state)
        outputs: Iterator[tuple[Tensor, ...]]
        if self.gates is None:
            outputs = zip(*(cell.passes(tokens, part) for cell, part in zip(cells, states, strict=True)), strict=True)
        else:
            outputs = self._gated(cells, tokens, states)
        for parts in outputs:
            yield torch.cat([cell.head_dropout(x) for cell, x in zip(cells, parts, strict=True)], dim=-1)

    def _gated(self, cells: list[Any], tokens: Tensor, states: list[Any]) -> Iterator[tuple[Tensor, ...]]:
        assert self.gates is not None
        trees = [{} if state is None else state.chunk_tree["blocks"] for state in states]
        hidden = [
            cell.embedding_dropout(cell.embed_text(tokens, {} if state is None else state.chunk_tree))
            for cell, state in zip(cells, states, strict=True)
        ]
        means: list[Tensor | None] = [None] * len(hidden)
        kept = [cell.draw_depth() for cell in cells]
        silence = torch.zeros_like(hidden[0])
        for index in range(self.config.layers * self.config.loop_iterations):
            for i, cell in enumerate(cells):
                hidden[i], means[i] = cell.apply_block(
                    index, hidden[i], tokens, silence, means[i], trees[i].get(str(index)), kept[i]
                )
            done = index % self.config.layers + 1
            if done % self.config.gate_interval == 0:
                hidden = self.gates[done // self.config.gate_interval - 1](hidden)
            if done == self.config.layers:
                yield tuple(cell.norm(x) for cell, x in zip(cells, hidden, strict=True))
