"""Embeddings of pairs of tokens, found by a hash."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wavelet_core.look_backs import with_history
from wavelet_core.state import Tree, document_positions

BITS = (1 << 31) - 1


def bigram_row(previous: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """The row, of `rows`, of a pair of tokens.

    With p = 1 + the token before, 0 where a text or a document begins, and t the token, in 31 bits throughout:
    h = 0x9E3779B1 p XOR 0x85EBCA77 t;  h = 0x2C1B3C6D (h XOR (h >> 15));  row = (h XOR (h >> 15)) modulo rows.

    Shapes: previous (p) and tokens (t) int64 of one shape, which the result has.
    """
    bits = (previous * 0x9E3779B1 ^ tokens * 0x85EBCA77) & BITS
    bits = ((bits ^ (bits >> 15)) * 0x2C1B3C6D) & BITS
    return (bits ^ (bits >> 15)) % rows


class HashedBigramEmbedding(nn.Module):
    """A table (rows, C) with a row for every pair of a token and the one before it, which pairs may share (hash
    embeddings: Svenstrup et al. 2017; of n-grams: Huang et al. 2025, arXiv 2501.16975). It starts at zero.

    The state is the token before. Shapes: tokens (B, T) -> (B, T, C).
    """

    resets_at_documents = True

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.table = nn.Embedding(rows, width)
        nn.init.zeros_(self.table.weight)

    def new_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tree:
        return {"previous": torch.zeros(batch_size, 1, 1, dtype=torch.int64, device=device)}

    def forward(self, tokens: Tensor, state: Tree | None = None) -> Tensor:
        history: Any = None if state is None else state["previous"]
        previous = with_history(tokens.unsqueeze(-1) + 1, history, 1)[:, :-1, 0]
        if (positions := document_positions(state)) is not None:
            previous = previous.masked_fill(positions == 0, 0)
        embedded: Tensor = self.table(bigram_row(previous, tokens, self.table.num_embeddings))
        return embedded
