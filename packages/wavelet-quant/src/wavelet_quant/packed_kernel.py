"""The contract of a kernel that multiplies packed matrices."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from wavelet_core.kernels import Kernel


class PackedKernel(Kernel):
    """A kernel that multiplies packed matrices (packed.py says how they lie in memory), none of which it unpacks whole.

    x (..., K), or (S, N, K) for a stack; values (blocks, words, 16, 4) or (S, blocks, words, 16, 4), uint8; scales
    (..., blocks, groups, 16); bias (M) or None, of any type; `bits` is 8, 4 or 2, `height` M. Shapes have been checked;
    devices, types and strides have not. The result (..., M) or (S, N, M) has the type of x. A kernel may
    round x to integers: of 16 bits with a scale for each row, or of 8 for groups of channels, of more than 8 rows only,
    and not where `wavelet_core.kernels.want_single_rows`.

    Products of dense matrices are left to others by one that does not override `accepts`.
    """

    @abstractmethod
    def accepts_packed(self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int) -> bool:
        """Whether it computes this product of `packed_linear`."""

    @abstractmethod
    def packed_linear(
        self, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, bits: int, height: int, gelu: bool
    ) -> Tensor:
        """x W^T + b, then GELU where asked."""

    def accepts(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        return False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        raise TypeError(f"{self.config.kind} multiplies packed matrices only; ask `accepts` first")

    def stacked_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        raise TypeError(f"{self.config.kind} multiplies packed matrices only; ask `accepts` first")
