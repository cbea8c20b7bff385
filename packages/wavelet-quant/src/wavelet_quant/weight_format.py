"""Weight formats: components of kind `format`, each a way to store one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wavelet_core import ComponentConfig
from wavelet_core.linear import linear, stacked_linear


class StoredMatrix(nn.Module, ABC):
    """A matrix (M, K), or a stack of them (S, M, K), in some format; calling it multiplies.

    What it holds is in buffers, so that checkpoints have it. `.to(dtype)` changes the type that the matrix is read as,
    and leaves the other buffers in theirs. A subclass has to say what `matrix` is; `rows` and the product are faster
    where they do not go through the whole of it.

    Buffer: read_as (0,), of the type that the matrix is read as.
    """

    read_as: Tensor

    retyped: ClassVar[frozenset[str]] = frozenset({"read_as"})  # the buffers whose type `.to(dtype)` changes

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("read_as", torch.empty(0, dtype=dtype, device=device))

    @property
    def dtype(self) -> torch.dtype:
        """The type that the matrix is read as."""
        return self.read_as.dtype

    @property
    def bits_per_weight(self) -> float:
        """Bits that are stored for each weight, scales and padding included."""
        return 8 * sum(buffer.nbytes for buffer in self.buffers()) / max(1, torch.Size(self.shape).numel())

    @abstractmethod
    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole matrix in floating point, of the type that it is read as where none is given."""

    def rows(self, index: Tensor) -> Tensor:
        """The rows (*index.shape, K) of a matrix (M, K), in the type that it is read as."""
        return self.matrix()[index]

    def forward(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """x W^T + b, then GELU where asked, in x's type. Shapes: (..., K) -> (..., M), or (S, N, K) -> (S, N, M)."""
        matrix = self.matrix(x.dtype)
        return stacked_linear(x, matrix) if matrix.dim() == 3 else linear(x, matrix, bias, gelu)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredMatrix:
        before: dict[str, Any] = {name: self._buffers[name] for name in self._buffers.keys() - self.retyped}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after: Any = self._buffers[name]
            if after.dtype is not buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, read as {self.dtype}"


class WeightFormat(ABC):
    """How a matrix is stored, made as `(config)`.

    rounds_by_inputs: whether `store` makes use of a hessian, so that collecting one is worth the time.
    """

    rounds_by_inputs: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config: ComponentConfig = config

    def fits(self, shape: torch.Size) -> bool:
        """Whether a weight (M, K) or (S, M, K) can be stored."""
        return True

    @abstractmethod
    def store(self, weight: Tensor, hessian: Tensor | None = None) -> StoredMatrix:
        """A weight (M, K) or (S, M, K) of a shape that fits, as its nearest neighbour in this format.

        hessian: the mean of x x^T over the inputs x that the matrix will see, in blocks along its diagonal, the last
        filled up with zeros: (blocks, size, size), with S in front for a stack. A format may round with regard to it.
        A weight without values yet, on the `meta` device, gives a stored matrix of the same buffers there.

        Raises ValueError for a weight that is not finite or too large, saying what of it is wrong: "has ...".
        """

    def store_table(self, weight: Tensor) -> StoredMatrix:
        """A table (M, K) whose rows are only gathered, never multiplied with; as `store` where no layout is better."""
        return self.store(weight)
