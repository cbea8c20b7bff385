"""Mamba-2's selective state-space recurrence (Dao and Gu 2024, arXiv 2405.21060, section 6).

A head keeps a matrix h (D, N). With a decay a_t in (0, 1), an input x_t (D), and B_t, C_t (N) that all heads share,

    h_t = a_t h_{t-1} + x_t B_t^T,    y_t = h_t C_t.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64


def state_space_by_position(
    x: Tensor, log_decay: Tensor, enter: Tensor, leave: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written: what `state_space` must give. Same arguments."""
    outputs = []
    for position in range(x.shape[1]):
        written = torch.einsum("bhd,bn->bhdn", x[:, position], enter[:, position])
        memory = log_decay[:, position].exp()[..., None, None] * memory + written
        outputs.append(torch.einsum("bhdn,bn->bhd", memory, leave[:, position]))
    return torch.stack(outputs, dim=1), memory


def state_space(
    x: Tensor, log_decay: Tensor, enter: Tensor, leave: Tensor, memory: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, D) of all positions, and the memory (B, H, D, N) after the last one.

    Inside a chunk it is an attention whose weights decay, between chunks a recurrence of the memories.
    Shapes: x (B, T, H, D), log_decay (at most 0) (B, T, H), enter and leave (B, T, N), memory (B, H, D, N); float32.
    """
    length = x.shape[1]
    if length == 1:
        return state_space_by_position(x, log_decay, enter, leave, memory)
    chunk = min(chunk, length)
    padding = -length % chunk  # positions of zeros change nothing
    x = F.pad(x, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, chunk))
    log_decay, enter, leave = (
        F.pad(part, (0, 0, 0, padding)).unflatten(1, (-1, chunk)) for part in (log_decay, enter, leave)
    )
    total = log_decay.cumsum(2).permute(0, 1, 3, 2)  # (B, chunks, H, chunk)
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().exp().tril()
    attention = (leave @ enter.mT).unsqueeze(2) * decay
    values = x.transpose(2, 3)  # (B, chunks, H, chunk, D)
    inside = attention @ values
    last = total[..., -1:]
    written = (values * (last - total).exp().unsqueeze(-1)).mT @ enter.unsqueeze(2)  # (B, chunks, H, D, N)
    kept = last.exp().unsqueeze(-1)
    before = []
    for index in range(x.shape[1]):
        before.append(memory)
        memory = kept[:, index] * memory + written[:, index]
    recalled = leave.unsqueeze(2) @ torch.stack(before, dim=1).mT  # (B, chunks, H, chunk, D)
    outputs = inside + total.exp().unsqueeze(-1) * recalled
    return outputs.transpose(2, 3).flatten(1, 2)[:, :length], memory
