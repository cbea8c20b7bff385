"""What the native library computes in training besides matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavelet_core.training_kernel import TrainingKernel
from wavelet_quant.native_library import TYPES, library, observed

GELU, GELU_GRADIENT, SILU_PRODUCT, SILU_PRODUCT_GRADIENTS = range(4)  # in the order of instruction_set.h


class NativeTraining(TrainingKernel):
    """Training's functions on a processor, in float32, bfloat16 or float16, in C++.

    instructions: the number of the instruction set, -1 without a library.
    """

    instructions: int

    def accepts_training(self, x: Tensor) -> bool:
        return type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.dtype in TYPES and not observed()

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

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        _check_within(targets, logits.shape[1], "targets")
        targets = targets.contiguous()
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        library().cross_entropy(
            self.instructions,
            TYPES[logits.dtype],
            *[tensor.data_ptr() for tensor in (logits, targets, losses)],
            *logits.shape,
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


def _check_within(index: Tensor, count: int, name: str) -> None:
    """Raise ValueError unless all numbers are from 0 to count - 1: the library trusts them."""
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < count):
        raise ValueError(f"{name} from {int(index.min())} to {int(index.max())}: they have to be from 0 to {count - 1}")
