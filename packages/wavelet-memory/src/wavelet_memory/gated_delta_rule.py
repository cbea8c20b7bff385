"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464): a fast weight that forgets and corrects.

A head keeps a matrix S (K, D) from keys to values. With a decay a_t in (0, 1] and a strength b_t in [0, 1],

    S_t = a_t (S_{t-1} - b_t k_t (k_t^T S_{t-1})) + b_t k_t v_t^T,    o_t = S_t^T q_t:

what the key k_t leads to is replaced by v_t, as far as b_t says. Keys are expected to have length 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wavelet_core.training_kernel import TrainingKernel, training_kernel

CHUNK = 32
# Entries of the largest matrices of the heads that a processor computes at once, so that they stay in its cache.
CACHED = 1 << 17


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
    corrections U solve (I + A) U = diag(b) (V - exp(G) K S), A = tril(diag(b) (K K^T * exp(G_i - G_j)), -1), S the
    memory before the chunk. That is linear in S, so I + A is inverted for all chunks together, and only S goes from
    chunk to chunk. There are no gradients of the gradients.

    Shapes: q and k (B, H, T, K), v (B, H, T, D), log_decay (at most 0) and strength (B, H, T), memory (B, H, K, D); all
    in float32.
    """
    batch, heads, length = q.shape[:3]
    if length == 1:
        return gated_delta_rule_by_position(q, k, v, log_decay, strength, memory)
    q, k, v, log_decay, strength, memory = (x.flatten(0, 1) for x in (q, k, v, log_decay, strength, memory))
    kernel = training_kernel(q)
    if kernel is None or not kernel.accepts_gated_delta_rule(q, v, chunk):
        outputs, memory = _by_products(q, k, v, log_decay, strength, memory, min(chunk, length))
    else:
        outputs, memory = _ByKernel.apply(kernel, chunk, q, k, v, log_decay, strength, memory)
    return outputs.unflatten(0, (batch, heads)), memory.unflatten(0, (batch, heads))


class _ByKernel(torch.autograd.Function):
    """The rule as a kernel computes it."""

    @staticmethod
    def forward(ctx: Any, kernel: TrainingKernel, chunk: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, memory = tensors
        outputs, memory, *kept = kernel.gated_delta_rule(tuple(inputs), memory, chunk)
        ctx.kernel, ctx.chunk = kernel, chunk
        ctx.save_for_backward(*inputs, *kept)
        return outputs, memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_outputs: Tensor, to_memory: Tensor) -> tuple[Any, ...]:
        *inputs, memories, corrections = ctx.saved_tensors
        kept = (memories, corrections)
        gradients = ctx.kernel.gated_delta_rule_gradients(tuple(inputs), kept, to_outputs, to_memory, ctx.chunk)
        return None, None, *gradients


def _by_products(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The rule for N heads by torch's products; shapes (N, T, ...) and (N, K, D)."""
    heads, length = q.shape[:2]
    padding = -length % chunk  # positions of zeros change nothing: no decay, no strength
    together = max(1, CACHED // (length * chunk)) if q.device.type == "cpu" else heads

    def in_chunks(x: Tensor) -> Tensor:
        """(N, T, ...) as (chunks, N, chunk, ...), in one piece."""
        padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, padding)) if padding else x
        return padded.unflatten(1, (-1, chunk)).transpose(0, 1).contiguous()

    parts = zip(*(x.split(together) for x in (q, k, v, log_decay, strength, memory)), strict=True)
    outputs, memories = zip(*(_Chunks.apply(*map(in_chunks, rows), part) for *rows, part in parts), strict=True)
    joined = torch.cat([output.transpose(0, 1).flatten(1, 2)[:, :length] for output in outputs])
    return joined, torch.cat(memories)


class _Chunks(torch.autograd.Function):
    """The rule over (chunks, N, chunk, ...) with N independent heads, as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = log_decay.cumsum(-1)
        decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril_().exp_().tril_()
        grown = total.exp().unsqueeze(-1)
        left = (total[..., -1:] - total).exp().unsqueeze(-1)
        kept = grown[..., -1:, :]
        weight = strength.unsqueeze(-1)

        system = (k @ k.mT).mul_(decay).mul_(weight).tril_(-1)
        identity = torch.eye(q.shape[2], dtype=q.dtype, device=q.device).expand_as(system)
        # The diagonal counts as ones, whatever stands there.
        inverse = torch.linalg.solve_triangular(system, identity, upper=False, unitriangular=True)
        solved = inverse @ torch.cat([weight * v, (weight * grown) * k], dim=-1)
        fresh, recalled = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
        writes = k * left

        memories, corrections = [memory], []
        for index in range(len(q)):
            corrections.append(torch.baddbmm(fresh[index], recalled[index], memories[-1], alpha=-1))
            memories.append(torch.baddbmm(kept[index] * memories[-1], writes[index].mT, corrections[-1]))
        before, corrected = torch.stack(memories[:-1]), torch.stack(corrections)
        attention = (q @ k.mT).mul_(decay)
        outputs = attention @ corrected + (q * grown) @ before
        ctx.save_for_backward(
            q, k, v, strength, grown, left, decay, system, inverse, solved, attention, before, corrected
        )
        return outputs, memories[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_outputs: Tensor, to_memory: Tensor) -> tuple[Tensor, ...]:
        q, k, v, strength, grown, left, decay, system, inverse, solved, attention, before, corrected = ctx.saved_tensors
        to_outputs = to_outputs.contiguous()  # products of other matrices copy them one by one
        weight, kept = strength.unsqueeze(-1), grown[..., -1:, :]
        fresh_width = v.shape[-1]
        recalled = solved[..., fresh_width:]
        writes, reads = k * left, q * grown

        # From the last chunk to the first: what the corrections and the memory after each chunk are worth.
        from_attention, from_reads = attention.mT @ to_outputs, reads.mT @ to_outputs
        to_corrected, to_after = [], [to_memory]
        for index in reversed(range(len(q))):
            to_corrected.append(torch.baddbmm(from_attention[index], writes[index], to_after[-1]))
            through = torch.addcmul(from_reads[index], kept[index], to_after[-1])
            to_after.append(torch.baddbmm(through, recalled[index].mT, to_corrected[-1], alpha=-1))
        to_fresh, after = torch.stack(to_corrected[::-1]), torch.stack(to_after[-2::-1])

        to_sides = inverse.mT @ torch.cat([to_fresh, -(to_fresh @ before.mT)], dim=-1)
        to_system = (to_sides @ solved.mT).tril_(-1).neg_()
        to_attention = to_outputs @ corrected.mT
        to_reads, to_writes = to_outputs @ before.mT, corrected @ after.mT
        to_values, to_keys = to_sides.split([fresh_width, k.shape[-1]], dim=-1)

        # Of the logarithms: G_i - G_j in both matrices, G_i in reads and keys, G_last - G_j in writes.
        exponents = (to_system * system).addcmul_(to_attention, attention)
        by_row, by_column = exponents.sum(-1), exponents.sum(-2)
        keyed = (to_keys * k).sum(-1)
        written = (to_writes * writes).sum(-1)
        to_total = by_row - by_column + keyed * strength * grown.squeeze(-1) + (to_reads * reads).sum(-1) - written
        to_kept = (after * before).sum((-1, -2)) * kept.flatten(1)
        to_total[..., -1] += written.sum(-1) + to_kept
        to_log_decay = to_total.flip(-1).cumsum(-1).flip(-1)

        unweighted = (k @ k.mT).mul_(decay)
        to_strength = (to_system * unweighted).sum(-1) + (to_values * v).sum(-1) + keyed * grown.squeeze(-1)
        to_products = to_system.mul_(weight).mul_(decay)
        to_scores = to_attention.mul_(decay)
        to_q = torch.addcmul(to_scores @ k, to_reads, grown)
        to_k = (to_products + to_products.mT) @ k + to_scores.mT @ q
        to_k.addcmul_(to_keys, weight * grown).addcmul_(to_writes, left)
        return to_q, to_k, weight * to_values, to_log_decay, to_strength, to_after[-1]
