"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464): a fast weight that forgets and corrects.

A head keeps a matrix S (K, D) from keys to values. With a decay a_t in (0, 1] and a strength b_t in [0, 1],

    S_t = a_t (S_{t-1} - b_t k_t (k_t^T S_{t-1})) + b_t k_t v_t^T,    o_t = S_t^T q_t:

what the key k_t leads to is replaced by v_t, as far as b_t says. Keys are expected to have length 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64


def gated_delta_rule_by_position(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The rule as it is written, one position after the other: what `gated_delta_rule` must give. Same arguments."""
    outputs = []
    for position in range(q.shape[2]):
        q_t, k_t, v_t = q[:, :, position], k[:, :, position], v[:, :, position]
        memory = memory * log_decay[:, :, position, None, None].exp()
        correction = strength[:, :, position, None] * (v_t - torch.einsum("bhk,bhkd->bhd", k_t, memory))
        memory = memory + torch.einsum("bhk,bhd->bhkd", k_t, correction)
        outputs.append(torch.einsum("bhk,bhkd->bhd", q_t, memory))
    return torch.stack(outputs, dim=2), memory


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Outputs (B, H, T, D) of all positions, and the memory (B, H, K, D) after the last one.

    All positions of a chunk are computed at once: with G the sum of the log decays from the chunk's start, the
    corrections U solve (I + tril(diag(b) (K K^T * exp(G_i - G_j)), -1)) U = diag(b) (V - exp(G) K S), S the memory
    before the chunk. That is linear in S, so the triangular systems of all chunks are solved together, and only S goes
    from chunk to chunk.

    Shapes: q and k (B, H, T, K), v (B, H, T, D), log_decay (at most 0) and strength (B, H, T), memory (B, H, K, D); all
    in float32.
    """
    length = q.shape[2]
    if length == 1:
        return gated_delta_rule_by_position(q, k, v, log_decay, strength, memory)
    chunk = min(chunk, length)
    # A position of zeros changes nothing: no decay, no strength.
    padding = -length % chunk
    q, k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, chunk)) for x in (q, k, v))
    log_decay, strength = (F.pad(x, (0, padding)).unflatten(2, (-1, chunk)) for x in (log_decay, strength))

    total = log_decay.cumsum(-1)  # G, (B, H, chunks, chunk)
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().exp().tril()
    weighted = strength.unsqueeze(-1)
    system = (weighted * (k @ k.mT) * decay).tril(-1)
    sides = torch.cat([weighted * v, weighted * total.exp().unsqueeze(-1) * k], dim=-1)
    # The diagonal counts as ones, whatever stands there.
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    fresh, recalled = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    reads = q * total.exp().unsqueeze(-1)
    attention = (q @ k.mT) * decay
    last = total[..., -1:]
    writes = (k * (last - total).exp().unsqueeze(-1)).mT
    kept = last.exp().unsqueeze(-1)
    outputs = []
    for index in range(q.shape[2]):
        corrections = fresh[:, :, index] - recalled[:, :, index] @ memory
        outputs.append(reads[:, :, index] @ memory + attention[:, :, index] @ corrections)
        memory = kept[:, :, index] * memory + writes[:, :, index] @ corrections
    return torch.cat(outputs, dim=2)[:, :, :length], memory
