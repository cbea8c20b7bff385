"""What stands in for modules whose matrix is in a weight format.

`nn.Linear`, `StackedLinear`, `nn.Embedding` and `nn.EmbeddingBag` have drop-ins, and so have subclasses of them that
change the matrix, which is stored as they compute it. Left in floating point are the parameters of any other module,
and subclasses with a `forward` of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from wavelet_core.linear import Linear, StackedLinear
from wavelet_quant.weight_format import StoredMatrix

GATHERED = 1 << 20  # numbers that a bag turns into floating point at a time


class DropIn(nn.Module):
    """Stands in for a module with a matrix. `weight` is a StoredMatrix, the same one where matrices are shared."""

    def __init__(self, module: Any, weight: StoredMatrix):
        super().__init__()
        self.weight = weight
        self.train(module.training)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the matrix is read as."""
        return self.weight.dtype

    def matrix(self) -> Tensor:
        """The whole matrix in floating point."""
        return self.weight.matrix()


class LinearDropIn(DropIn):
    """Stands in for `nn.Linear`, with GELU where asked, in the type of x. Shapes: (..., K) -> (..., M)."""

    def __init__(self, module: nn.Linear, weight: StoredMatrix):
        super().__init__(module, weight)
        self.in_features, self.out_features, self.bias = module.in_features, module.out_features, module.bias

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return self.weight(x, self.bias, gelu)


class StackedLinearDropIn(DropIn):
    """Stands in for `StackedLinear`, in the type of x. Shapes: (S, N, K) -> (S, N, M)."""

    def __init__(self, module: StackedLinear, weight: StoredMatrix):
        super().__init__(module, weight)
        self.scales = module.scales

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(x)


class EmbeddingDropIn(DropIn):
    """Stands in for `nn.Embedding`; only the rows asked for become floating point."""

    def __init__(self, module: nn.Embedding, weight: StoredMatrix):
        super().__init__(module, weight)
        self.num_embeddings, self.embedding_dim = module.num_embeddings, module.embedding_dim

    def forward(self, input: Tensor) -> Tensor:
        return self.weight.rows(input)


class EmbeddingBagDropIn(DropIn):
    """Stands in for `nn.EmbeddingBag`; only the rows asked for become floating point.

    With offsets, or a padding index, the whole table does.
    """

    def __init__(self, module: nn.EmbeddingBag, weight: StoredMatrix):
        super().__init__(module, weight)
        self.num_embeddings, self.embedding_dim = module.num_embeddings, module.embedding_dim
        options = ("mode", "padding_idx", "include_last_offset")
        self.options: dict[str, Any] = {option: getattr(module, option) for option in options}

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if input.dim() != 2 or self.options["padding_idx"] is not None:
            return F.embedding_bag(input, self.matrix(), offsets, per_sample_weights=per_sample_weights, **self.options)
        bags = max(1, GATHERED // max(1, input.shape[1] * self.embedding_dim))
        parts = input.split(bags)
        weights = [None] * len(parts) if per_sample_weights is None else per_sample_weights.split(bags)
        return torch.cat([self._gather(*pair) for pair in zip(parts, weights, strict=True)])

    def _gather(self, input: Tensor, per_sample_weights: Tensor | None) -> Tensor:
        table = self.weight.rows(input.flatten())
        places = torch.arange(input.numel(), device=input.device).view_as(input)
        return F.embedding_bag(places, table, per_sample_weights=per_sample_weights, **self.options)


# What is replaced, the `forward`s that its drop-in knows, and the drop-in.
DROP_INS: tuple[tuple[type[nn.Module], tuple[Any, ...], type[DropIn]], ...] = (
    (nn.Linear, (nn.Linear.forward, Linear.forward), LinearDropIn),
    (StackedLinear, (StackedLinear.forward,), StackedLinearDropIn),
    (nn.Embedding, (nn.Embedding.forward,), EmbeddingDropIn),
    (nn.EmbeddingBag, (nn.EmbeddingBag.forward,), EmbeddingBagDropIn),
)


def drop_in_of(module: nn.Module) -> type[DropIn] | None:
    """What can stand in for a module, or None."""
    # A table with max_norm is rewritten whenever it is read; torch's attention reads its output's weight itself.
    if getattr(module, "max_norm", None) is None and not isinstance(module, NonDynamicallyQuantizableLinear):
        for original, forwards, drop_in in DROP_INS:
            if isinstance(module, original) and type(module).forward in forwards:
                return drop_in
    return None
