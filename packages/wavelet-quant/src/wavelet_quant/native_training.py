"""What the native library computes in training besides matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavelet_core.training_kernel import TrainingKernel
from wavelet_quant.native_library import TYPES, library

DELTA_STEP = 16  # keys, values and chunks of the gated delta rule are multiples of it
# In the order of instruction_set.h.
GELU, GELU_GRADIENT, SILU_PRODUCT, SILU_PRODUCT_GRADIENTS, RELU_SQUARED, RELU_SQUARED_GRADIENT = range(6)


class NativeTraining(TrainingKernel):
    """Training's functions on a processor, in float32, bfloat16 or float16, in C++.

    instructions: the number of the instruction set, -1 without a library.
    """

    instructions: int

    def accepts_training(self, x: Tensor) -> bool:
        plain = type(x) in (Tensor, nn.Parameter) and torch._C._len_torch_dispatch_stack() == 0
        return plain and x.is_cpu and x.dtype in TYPES

    def _elementwise(self, function: int, outputs: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(each.contiguous() for each in inputs)
        results = tuple(torch.empty_like(inputs[0]) for _ in range(outputs))
        library().elementwise(
            self.instructions,
            TYPES[inputs[0].dtype],
            function,
            *[inputs[i].data_ptr() if i < len(inputs) else None for i in range(3)],
            *[results[i].data_ptr() if i < outputs else None for i in range(2)],
            inputs[0].numel(),
            torch.get_num_threads(),
        )
        return results

    def gelu(self, x: Tensor) -> Tensor:
        return self._elementwise(GELU, 1, x)[0]

    def gelu_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        return self._elementwise(GELU_GRADIENT, 1, gradient, x)[0]

    def silu_product(self, x: Tensor, gate: Tensor) -> Tensor:
        return self._elementwise(SILU_PRODUCT, 1, x, gate)[0]

    def silu_product_gradients(self, gradient: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        to_x, to_gate = self._elementwise(SILU_PRODUCT_GRADIENTS, 2, gradient, x, gate)
        return to_x, to_gate

    def gelu_gradients(self, gradient: Tensor, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        to_x, sums = torch.empty_like(x), x.new_empty(x.shape[-1], dtype=torch.float32)
        library().gelu_gradients(
            self.instructions,
            TYPES[x.dtype],
            gradient.data_ptr(),
            x.data_ptr(),
            scale,
            to_x.data_ptr(),
            sums.data_ptr(),
            *x.shape,
            torch.get_num_threads(),
        )
        return to_x, sums

    def blend(
        self, rows: Tensor, weights: Tensor, nearest: int, other: Tensor, scale: float, sign: float, out: Tensor
    ) -> None:
        self._blend(rows, weights, nearest, other, scale, sign, out, None, None)

    def blend_gradients(
        self, gradient: Tensor, rows: Tensor, weights: Tensor, nearest: int, other: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        to_rows, sums = torch.empty_like(rows), weights.new_empty(len(weights) + 2, rows.shape[-1])
        self._blend(rows, weights, nearest, other, scale, 1.0, gradient, to_rows, sums)
        return to_rows, sums

    def _blend(
        self,
        rows: Tensor,
        weights: Tensor,
        nearest: int,
        other: Tensor,
        scale: float,
        sign: float,
        out: Tensor,
        to_rows: Tensor | None,
        sums: Tensor | None,
    ) -> None:
        library().blend(
            self.instructions,
            TYPES[rows.dtype],
            *[tensor.data_ptr() for tensor in (rows, other, weights)],
            len(weights),
            nearest,
            scale,
            sign,
            out.data_ptr(),
            *rows.shape,
            torch.get_num_threads(),
            *[None if tensor is None else tensor.data_ptr() for tensor in (to_rows, sums)],
        )

    def relu_squared(self, x: Tensor) -> Tensor:
        return self._elementwise(RELU_SQUARED, 1, x)[0]

    def relu_squared_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        return self._elementwise(RELU_SQUARED_GRADIENT, 1, gradient, x)[0]

    def cross_entropy(self, logits: Tensor, targets: Tensor, soft_cap: float | None) -> Tensor:
        _check_within(targets, logits.shape[1], "targets")
        targets = targets.contiguous()
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        library().cross_entropy(
            self.instructions,
            TYPES[logits.dtype],
            *[tensor.data_ptr() for tensor in (logits, targets, losses)],
            *logits.shape,
            0.0 if soft_cap is None else soft_cap,
            torch.get_num_threads(),
        )
        return losses

    def best_pairs(
        self, scores_a: Tensor, scores_b: Tensor, ranks: Tensor, halves: int, best: int
    ) -> tuple[Tensor, Tensor]:
        scores_a, scores_b, (ranks_a, ranks_b) = scores_a.contiguous(), scores_b.contiguous(), ranks.contiguous()
        keys_a, keys_b = ranks.new_empty(2, *scores_a.shape[:-1], best)
        library().best_pairs(
            self.instructions,
            TYPES[scores_a.dtype],
            *[tensor.data_ptr() for tensor in (scores_a, scores_b, ranks_a, ranks_b, keys_a, keys_b)],
            scores_a.numel() // scores_a.shape[-1],
            scores_a.shape[-1],
            halves,
            len(ranks_a),
            best,
            torch.get_num_threads(),
        )
        return keys_a, keys_b

    def read_gradients(self, gradient: Tensor, table: Tensor, row: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        _check_within(row, len(table), "rows")
        gradient, table, weight, row = (each.contiguous() for each in (gradient, table, weight, row))
        to_weight, to_table = torch.empty_like(weight), torch.zeros_like(table)
        library().read_gradients(
            self.instructions,
            *[tensor.data_ptr() for tensor in (gradient, table, weight, row, to_weight, to_table)],
            *row.shape,
            table.shape[1],
            torch.get_num_threads(),
        )
        return to_weight, to_table

    def accepts_gated_delta_rule(self, q: Tensor, v: Tensor, chunk: int) -> bool:
        return q.dtype is torch.float32 and all(size % DELTA_STEP == 0 for size in (q.shape[-1], v.shape[-1], chunk))

    def gated_delta_rule(
        self, inputs: tuple[Tensor, ...], memory: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, _, v, *_ = inputs
        memory = memory.clone(memory_format=torch.contiguous_format)
        memories = memory.new_empty(len(q), -(-q.shape[1] // chunk), *memory.shape[1:])
        outputs, corrections = v.new_empty(v.shape), v.new_empty(v.shape)
        self._delta_rule(inputs, (outputs, memory, memories, corrections), chunk, (None,) * 7)
        return outputs, memory, memories, corrections

    def gated_delta_rule_gradients(
        self, inputs: tuple[Tensor, ...], kept: tuple[Tensor, Tensor], to_outputs: Tensor, to_memory: Tensor, chunk: int
    ) -> tuple[Tensor, ...]:
        to_memory = to_memory.clone(memory_format=torch.contiguous_format)
        gradients = [x.new_empty(x.shape) for x in inputs]
        self._delta_rule(inputs, (None, None, *kept), chunk, (to_outputs.contiguous(), to_memory, *gradients))
        return *gradients, to_memory

    def _delta_rule(
        self,
        inputs: tuple[Tensor, ...],
        results: tuple[Tensor | None, ...],
        chunk: int,
        gradients: tuple[Tensor | None, ...],
    ) -> None:
        inputs = tuple(x.contiguous() for x in inputs)
        heads, length, keys = inputs[0].shape
        sizes = (heads, length, keys, inputs[2].shape[-1], chunk, torch.get_num_threads())
        addresses = [None if x is None else x.data_ptr() for x in (*inputs, *results)]
        to = [None if x is None else x.data_ptr() for x in gradients]
        library().delta_rule(self.instructions, *addresses, *sizes, *to)


def _check_within(index: Tensor, count: int, name: str) -> None:
    """Raise ValueError unless all numbers are from 0 to count - 1: the library trusts them."""
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < count):
        raise ValueError(f"{name} from {int(index.min())} to {int(index.max())}: they have to be from 0 to {count - 1}")
