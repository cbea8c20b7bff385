"""Batches of texts with padding, read so that no padding is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def read_texts(function: Callable[..., Tensor], tokens: Tensor, starts: list[int], state: Any) -> Tensor:
    """What the function gives (B, T, ...) for tokens (B, T) that begin at `starts`, zero where there is padding.

    function: called with the tokens of some rows and the state of these rows. state: of all rows, or None.
    """
    if not any(starts):
        return function(tokens, state)
    result: Tensor | None = None
    for start in sorted(set(starts) - {tokens.shape[1]}):
        rows = [row for row, other in enumerate(starts) if other == start]
        part = None if state is None else state[rows]
        read = function(tokens[rows, start:], part)
        if result is None:
            result = read.new_zeros(*tokens.shape, read.shape[-1])
        result[rows, start:] = read
        if state is not None:
            state.write(rows, part)
    if result is None:
        raise ValueError("attention_mask leaves nothing to read in any text of the batch")
    return result


def text_starts(tokens: Tensor, mask: Tensor | None, cached: bool) -> list[int]:
    """The place of each row's first token that is not padding.

    mask: (B, T) or longer, 0 for padding. cached: whether a state reads the tokens. Raises ValueError for what is left
    out inside a text, and after it where a state would read it.
    """
    batch, length = tokens.shape
    if mask is None:
        return [0] * batch
    if mask.dim() != 2 or len(mask) != batch or mask.shape[1] < length:
        raise ValueError(
            f"attention_mask has the shape {list(mask.shape)}, but a mask of texts and positions is needed, "
            f"[{batch}, {length}] or longer"
        )
    mask = mask[:, -length:].bool()
    if bool(mask.all()):
        return [0] * batch
    read = mask.long().cumsum(1)
    starts = (read == 0).sum(1)
    ends = length - (read == read[:, -1:]).sum(1) + 1
    ends = torch.where(starts == length, length, ends)
    if bool((mask.sum(1) != ends - starts).any()):
        raise ValueError(
            "attention_mask leaves out tokens inside a text; only padding before or after it can be left out"
        )
    if cached and bool((ends != length).any()):
        raise ValueError(
            "attention_mask has padding after a text, which a streaming state would read; pad on the left: "
            "tokenizer.padding_side = 'left'"
        )
    found: list[int] = starts.tolist()
    return found


def without_first(labels: Tensor, starts: list[int]) -> Tensor:
    """Labels without those of tokens that follow padding, which nothing predicts."""
    rows = [row for row, start in enumerate(starts) if 0 < start < labels.shape[1]]
    if rows:
        labels = labels.clone()
        labels[rows, [starts[row] for row in rows]] = -100
    return labels
