"""What a kernel may compute in training besides matrix products: functions that torch makes of several passes."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from wavelet_core.kernels import Kernel, active_kernels


class TrainingKernel(Kernel):
    """A kernel with functions for training, all of them of contiguous tensors, and the gradients that they need.

    They give what torch gives, up to rounding, and are called only for tensors whose first one `accepts_training`.
    """

    @abstractmethod
    def accepts_training(self, x: Tensor) -> bool:
        """Whether it computes the functions below of tensors of x's type on x's device."""

    @abstractmethod
    def gelu(self, x: Tensor) -> Tensor:
        """GELU by the error function, in x's shape."""

    @abstractmethod
    def gelu_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient for x, from that of GELU's result."""

    @abstractmethod
    def silu_product(self, x: Tensor, gate: Tensor) -> Tensor:
        """x times SiLU of the gate, which is like x."""

    @abstractmethod
    def silu_product_gradients(self, gradient: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients for x and for the gate, from that of their `silu_product`."""

    @abstractmethod
    def gelu_gradients(self, gradient: Tensor, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """`scale` times the gradient for x (N, C), from that of GELU's result, and its sums (C) over N in float32."""

    @abstractmethod
    def blend(
        self, rows: Tensor, weights: Tensor, nearest: int, other: Tensor, scale: float, sign: float, out: Tensor
    ) -> None:
        """out_t = scale (sign other_t + sum_j weights_j rows_{t - nearest - K + 1 + j}), of rows before 0 nothing.

        Shapes: rows, other and out (B, T, C), of one type, weights (K), in float32.
        """

    @abstractmethod
    def blend_gradients(
        self, gradient: Tensor, rows: Tensor, weights: Tensor, nearest: int, other: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """scale (other + what `gradient`, that of the blended rows, gives to the rows), and sums over all positions.

        These are, in float32, of the gradient times every look-back's rows, of the gradient, and of `other`.
        Shapes: as of `blend` -> (B, T, C), (K + 2, C).
        """

    @abstractmethod
    def relu_squared(self, x: Tensor) -> Tensor:
        """The square of the ReLU, in x's shape."""

    @abstractmethod
    def relu_squared_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient for x, from that of its squared ReLU."""

    @abstractmethod
    def cross_entropy(self, logits: Tensor, targets: Tensor, soft_cap: float | None) -> Tensor:
        """Losses (N,) in nats, in float32, of logits (N, V) for targets (N,); turns the logits into their gradients.

        soft_cap: c, logits z become c tanh(z / c), and the gradients are those of z.

        Raises ValueError for targets that are not from 0 to V - 1.
        """

    @abstractmethod
    def best_pairs(
        self, scores_a: Tensor, scores_b: Tensor, ranks: Tensor, halves: int, best: int
    ) -> tuple[Tensor, Tensor]:
        """The places in two rows of scores whose sums are the largest, in any order; for product keys.

        Of the best `halves` scores of each row those pairs are looked at whose ranks, from 0 on, are `ranks` (2, M).
        Shapes: scores (..., n) each -> (..., best) each, int64.
        """

    @abstractmethod
    def read_gradients(self, gradient: Tensor, table: Tensor, row: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients for weight and table, from that of sums of rows, sum_r weight_nr table_{row_nr}, in float32.

        Shapes: gradient (N, C), table (M, C), row and weight (N, R) -> (N, R), (M, C). Raises ValueError for rows that
        the table has not.
        """

    @abstractmethod
    def accepts_gated_delta_rule(self, q: Tensor, v: Tensor, chunk: int) -> bool:
        """Whether it computes the gated delta rule of q and k (N, T, K) and v (N, T, D) in so long chunks."""

    @abstractmethod
    def gated_delta_rule(
        self, inputs: tuple[Tensor, ...], memory: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs (N, T, D), the memory after them (N, K, D), and two tensors that the gradients need.

        Called only where `accepts_gated_delta_rule`. inputs: q, k, v, log_decay (N, T) and strength (N, T). memory:
        (N, K, D), the one before. All in float32.
        """

    @abstractmethod
    def gated_delta_rule_gradients(
        self, inputs: tuple[Tensor, ...], kept: tuple[Tensor, Tensor], to_outputs: Tensor, to_memory: Tensor, chunk: int
    ) -> tuple[Tensor, ...]:
        """Gradients of q, k, v, log_decay, strength and memory, given those of the outputs and of the last memory.

        inputs: as above. kept: the two tensors.
        """


def training_kernel(x: Tensor) -> TrainingKernel | None:
    """The first active kernel with functions for training on tensors like x; none for a compiler, which has its own."""
    if torch.compiler.is_compiling():
        return None
    kernels = (kernel for kernel in active_kernels() if isinstance(kernel, TrainingKernel))
    return next((kernel for kernel in kernels if kernel.accepts_training(x)), None)
