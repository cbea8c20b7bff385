"""The fast-weight update in closed form, and the walk over a text that reads and updates (docs/model.md, section 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.state import Tree, document_positions


def update_deltas(
    deltas: Tensor, query: Tensor, read: Tensor, row: Tensor, weight: Tensor, learning_rate: float
) -> None:
    """One gradient step on mean((read[:-1] - query[1:])^2) for one chunk of one text, in place.

    The error of position t reaches row_tj of the deltas with weight_tj and no other row, so that the gradient is a
    scatter-add of the rows that were read: no pass over the table and no graph.

    Shapes: deltas (h N, C); query and read (n, C), the read values of the deltas as they are; row and weight (n, R).
    """
    error = read[:-1] - query[1:]
    gradient = weight[:-1].unsqueeze(-1) * error.unsqueeze(-2)
    step = -learning_rate * 2 / error.numel()
    deltas.index_add_(0, row[:-1].flatten(), gradient.flatten(0, 1).to(deltas.dtype), alpha=step)


def read_and_update(q: Tensor, read: Tensor, row: Tensor, weight: Tensor, state: Tree, learning_rate: float) -> Tensor:
    """What the deltas add to each position's read (B, T, C), moving the state of a fast-weight memory on.

    A document that begins in the chunk begins without deltas. Shapes: q and read (B, T, C), the read from the slow
    values; row and weight (B, T, R).
    """
    pending = state["pending"]
    assert isinstance(pending, dict)
    arguments = [tensor.detach() for tensor in (q, read, row, weight)]
    buffers = [pending[name] for name in ("query", "read", "row", "weight")]
    return torch.ops.wavelet_memory.read_and_update(
        *arguments, state["deltas"], *buffers, state["count"], learning_rate, document_positions(state)
    )


def _walk(
    q: Tensor,
    read: Tensor,
    row: Tensor,
    weight: Tensor,
    deltas: Tensor,
    pending_query: Tensor,
    pending_read: Tensor,
    pending_row: Tensor,
    pending_weight: Tensor,
    count: Tensor,
    learning_rate: float,
    document_positions: Tensor | None = None,
) -> Tensor:
    """The body of `read_and_update`: part by part, each up to the next end of a chunk in any row."""
    batch, length, _ = q.shape
    chunk = pending_query.shape[1]
    pending = (pending_query, pending_read, pending_row, pending_weight)
    table = deltas.view(-1, deltas.shape[-1])
    batch_rows = torch.arange(batch, device=q.device).unsqueeze(-1)
    table_row = row + batch_rows.unsqueeze(-1) * deltas.shape[1]
    weight = weight.to(deltas.dtype)
    learned = torch.empty(q.shape, dtype=deltas.dtype, device=q.device)
    begins = None if document_positions is None else document_positions == 0
    borders = [] if begins is None else begins.any(0).nonzero().flatten().tolist()
    start = 0
    while start < length:
        if begins is not None:
            deltas[begins[:, start]] = 0
            count[begins[:, start]] = 0
        # Until the first row ends its chunk nobody's deltas change, so that all these positions are read at once.
        stop = min(length, start + chunk - int(count.max()), *(border for border in borders if border > start))
        part = slice(start, stop)
        learned[:, part] = F.embedding_bag(
            table_row[:, part].flatten(0, 1), table, per_sample_weights=weight[:, part].flatten(0, 1), mode="sum"
        ).unflatten(0, (batch, -1))

        place = count.unsqueeze(-1) + torch.arange(stop - start, device=q.device)
        entries = (q[:, part], read[:, part] + learned[:, part], row[:, part], weight[:, part])
        for buffer, entry in zip(pending, entries, strict=True):
            buffer[batch_rows, place] = entry.to(buffer.dtype)
        count += stop - start

        for index in (count == chunk).nonzero().flatten().tolist():
            queries, reads, rows, weights = (buffer[index] for buffer in pending)
            update_deltas(deltas[index], queries, reads, rows, weights, learning_rate)
            count[index] = 0
        start = stop
    return learned


def _shape_of_walk(
    q: Tensor, read: Tensor, row: Tensor, weight: Tensor, deltas: Tensor, *rest: Tensor | float | None
) -> Tensor:
    """What `torch.compile` needs to know of the result: float32 or wider, like the deltas."""
    return torch.empty(q.shape, dtype=deltas.dtype, device=q.device)


# One opaque operator, because how far the walk gets at once depends on the counts of the rows: `torch.compile` keeps
# the model one graph around it.
OPERATOR = "wavelet_memory::read_and_update"
MUTATED = ("deltas", "pending_query", "pending_read", "pending_row", "pending_weight", "count")
torch.library.define(OPERATOR, torch.library.infer_schema(_walk, mutates_args=MUTATED))
torch.library.impl(OPERATOR, "default", _walk)
torch.library.register_fake(OPERATOR, _shape_of_walk)
