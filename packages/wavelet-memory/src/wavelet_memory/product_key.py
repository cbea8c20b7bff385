"""Product-key memory: a large table of values, of which every position reads a few (docs/model.md, section 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wavelet_core.config import ComponentConfig, ModelConfig, ModelShape
from wavelet_core.diagnostics import Diagnostic
from wavelet_core.linear import Linear, StackedLinear
from wavelet_core.training_kernel import TrainingKernel, training_kernel


class ProductKeyConfig(ComponentConfig):
    """What every product-key memory can be told."""

    num_keys: int = Field(
        16384, ge=1, description="N, values per head; a perfect square, addressed by two codebooks of sqrt(N) keys"
    )
    top_k: int = Field(32, ge=1, description="k, values that a head reads at every position; at most num_keys")
    heads: int = Field(1, ge=1, description="h, independent readers, each with its own keys and values")

    @model_validator(mode="after")
    def _check_keys(self) -> ProductKeyConfig:
        side = math.isqrt(self.num_keys)
        if side * side != self.num_keys:
            raise ValueError(
                f"num_keys={self.num_keys} is no perfect square, but the keys are the pairs of two codebooks; "
                f"use {side * side} or {(side + 1) ** 2}"
            )
        if self.top_k > self.num_keys:
            raise ValueError(
                f"top_k={self.top_k} is more than num_keys={self.num_keys}; read at most num_keys values, or add keys"
            )
        return self

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError unless every head gets two halves of equal width."""
        if model.width % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide model.width={model.width}; choose a divisor of the width"
            )
        if model.width // self.heads % 2:
            raise ValueError(
                f"heads={self.heads} gives each head model.width / heads = {model.width // self.heads} channels of "
                f"model.width={model.width}, an odd number that cannot be split into two halves; choose a width that "
                f"is a multiple of {2 * self.heads}, or other heads"
            )


class ValueTable(nn.EmbeddingBag):
    """The values, in rows. A drop-in for another weight format has a `dtype`, too: that of what is read."""

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


class _TableGradient(torch.autograd.Function):
    """Gives the table its gradient of weighted sums: for every row, the sum over the places where it was read.

    torch's own gradient of an embedding bag adds up one read after the other. Sorted by row, the reads of a row are a
    bag themselves, and rows that were not read are empty ones.
    """

    @staticmethod
    def forward(ctx: Any, read: Tensor, table: Tensor, row: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(row, weight)
        ctx.rows = len(table)
        return read.view_as(read)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        row, weight = ctx.saved_tensors
        ordered, order = row.flatten().sort(stable=True)
        first = torch.searchsorted(ordered, torch.arange(ctx.rows, device=row.device))
        table_gradient = F.embedding_bag(
            order // row.shape[-1], gradient, first, per_sample_weights=weight.flatten()[order], mode="sum"
        )
        return gradient, table_gradient, None, None


class _Read(torch.autograd.Function):
    """Weighted sums of a table's rows, whose gradients a kernel computes."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, row: Tensor, weight: Tensor, kernel: TrainingKernel) -> Tensor:
        ctx.save_for_backward(table, row, weight)
        ctx.kernel = kernel
        return F.embedding_bag(row, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None]:
        table, row, weight = ctx.saved_tensors
        to_weight, to_table = ctx.kernel.read_gradients(gradient, table, row, weight)
        return to_table, None, to_weight, None


class ProductKeyTable(nn.Module):
    """Keys, values and the read that the product-key memories share (Lample et al. 2019, "Large Memory Layers").

    A position's query is cut into heads and each head into two halves; a half is scored against its own codebook of
    sqrt(N) keys. Key (i, j) scores the sum of its halves, so that the best of N keys are found among the pairs of the
    best halves: the cost grows with sqrt(N). The values of the top k keys are summed with their softmax as weights.

    Parameters: query.weight (C, C); keys_a.weight, keys_b.weight (h, sqrt(N), C / 2h); values.weight (h N, C).
    """

    pairs: Tensor

    def __init__(self, config: ProductKeyConfig, shape: ModelShape):
        super().__init__()
        self.heads = config.heads
        self.half_width = shape.width // (2 * config.heads)
        self.num_keys = config.num_keys
        self.side = math.isqrt(config.num_keys)
        self.half_reads = min(config.top_k, self.side)
        self.head_reads = min(config.top_k, self.half_reads**2)
        self.reads = self.heads * self.head_reads  # R, values that a position reads: those of all heads
        self.register_buffer("pairs", torch.empty(2, len(self._candidates()), dtype=torch.int64), persistent=False)
        self.reset_buffers()
        self.query = Linear(shape.width, shape.width, bias=False)
        self.keys_a = StackedLinear(self.heads, self.half_width, self.side, std=0.02)
        self.keys_b = StackedLinear(self.heads, self.half_width, self.side, std=0.02)
        self.values = ValueTable(self.heads * self.num_keys, shape.width, mode="sum")
        nn.init.normal_(self.values.weight, std=0.02)

    def _candidates(self) -> list[tuple[int, int]]:
        """Ranks of two halves, best first, whose pair may be among the best k: i j + i + j pairs are no worse."""
        ranks = range(self.half_reads)
        return [(i, j) for i in ranks for j in ranks if (i + 1) * (j + 1) <= self.head_reads]

    def reset_buffers(self) -> None:
        self.pairs.copy_(torch.tensor(self._candidates()).T)

    def address(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the value table that q (B, T, C) reads and their weights, both (B, T, R).

        The softmax runs in float32 at least; the weights are in the table's type, which autocast leaves alone.
        """
        queries = self.query(q).view(-1, self.heads, 2, self.half_width)
        half_a, half_b = queries.permute(2, 1, 0, 3)  # (h, B T, C / 2h) each
        scores_a, scores_b = self.keys_a(half_a), self.keys_b(half_b)
        key_a, key_b = self._best_pairs(scores_a, scores_b)
        key = key_a * self.side + key_b
        scores = scores_a.gather(-1, key_a) + scores_b.gather(-1, key_b)
        weight = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(self.values.dtype)
        places = (*q.shape[:2], self.reads)
        if self.heads > 1:
            first_row = torch.arange(0, self.heads * self.num_keys, self.num_keys, device=q.device)
            key = key + first_row.view(-1, 1, 1)
        return key.transpose(0, 1).reshape(places), weight.transpose(0, 1).reshape(places)

    @torch.no_grad()
    def _best_pairs(self, scores_a: Tensor, scores_b: Tensor) -> tuple[Tensor, Tensor]:
        """The keys of both codebooks whose sums of scores (h, N, sqrt(N)) are the k largest, (h, N, k) each."""
        if self.training and (kernel := training_kernel(scores_a)) is not None:
            return kernel.best_pairs(scores_a, scores_b, self.pairs, self.half_reads, self.head_reads)
        best_a, order_a = scores_a.topk(self.half_reads)
        best_b, order_b = scores_b.topk(self.half_reads)
        rank_a, rank_b = self.pairs
        sums = best_a.index_select(-1, rank_a) + best_b.index_select(-1, rank_b)
        best = sums.topk(self.head_reads, sorted=False).indices
        return order_a.gather(-1, rank_a[best]), order_b.gather(-1, rank_b[best])

    def diagnose(self, q: Tensor, *state: Any) -> Iterator[Diagnostic]:
        row, _ = self.address(q)
        reads = row.flatten().bincount(minlength=self.heads * self.num_keys).double()
        name = type(self).Config.model_fields["kind"].default  # type: ignore[attr-defined]
        share = reads / reads.sum()
        effective = torch.special.entr(share).sum().exp()
        yield Diagnostic(
            f"Slots of {name}: how they are used",
            torch.stack([(reads > 0).double().mean(), share.max(), effective / len(reads)]),
            ("measure",),
            "share",
            (["slots read", "reads of the top slot", "slots, evenly used"],),
            explanation="The share of the values that the text reads at all, the share of all reads that the most read "
            "value has, and the share of values that would be as diverse if all were read alike (by the entropy).",
        )
        yield Diagnostic(
            f"Slots of {name}: reads by rank",
            reads.sort(descending=True).values,
            ("slot, most read first",),
            "reads",
            logarithmic=True,
        )

    def read(self, row: Tensor, weight: Tensor) -> Tensor:
        """The weighted sums (B, T, C) of rows of the value table; row and weight (B, T, R)."""
        rows, weights, values = row.flatten(0, 1), weight.flatten(0, 1), self.values
        if isinstance(values, ValueTable) and values.weight.requires_grad and torch.is_grad_enabled():
            total = self._read_in_training(values.weight, rows, weights)
        else:
            total = values(rows, per_sample_weights=weights)
        return total.view(*row.shape[:2], -1)

    def _read_in_training(self, table: Tensor, row: Tensor, weight: Tensor) -> Tensor:
        read: Tensor
        if table.dtype is weight.dtype is torch.float32 and (kernel := training_kernel(table)) is not None:
            read = _Read.apply(table, row, weight, kernel)
        else:
            read = F.embedding_bag(row, table.detach(), per_sample_weights=weight, mode="sum")
            read = _TableGradient.apply(read, table, row, weight)
        return read


class ProductKeyMemory(ProductKeyTable):
    """A product-key memory (docs/model.md, section 6; Lample et al. 2019). Shapes: (B, T, C) -> (B, T, C)."""

    class Config(ProductKeyConfig):
        kind: Literal["product_key"] = "product_key"

    def forward(self, q: Tensor) -> Tensor:
        return self.read(*self.address(q))
