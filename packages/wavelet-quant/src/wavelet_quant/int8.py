"""Weights in 8 bits: symmetric, one scale per output channel, in plain torch.

The published scheme: every matrix of the model, the token embedding and the head included, becomes whole numbers from
-127 to 127 times a scale, absmax / 127 of its output channel; biases, norms and scalars stay as they are. Weights are
turned back into floating point where they are used, so that the arithmetic is that of the unquantized model with
rounded weights. It is the reference that faster kernels are tested against: small in memory, not fast.

The modules that are the homes of matrices, plugins' included, are replaced by the drop-ins below: `nn.Linear`,
`StackedLinear`, `nn.Embedding` and `nn.EmbeddingBag`, and subclasses of them that change the matrix, which is quantized
as they compute it. What is left in floating point: parameters of any other module, and subclasses with a `forward` of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from wavelet_core import ComponentConfig
from wavelet_core.linear import Linear, StackedLinear, linear, stacked_linear

LARGEST = 127

Model = TypeVar("Model", bound=nn.Module)


class Int8Matrix(nn.Module):
    """A matrix as 8-bit numbers and one scale per output channel; calling it gives floating point again.

    Buffers: values (..., out, in), int8; scale (..., out, 1), float32 at least; read_as (0,), whose type is the one
    that the matrix is read as. No entry is off by more than half its scale. `.to(dtype)` changes what the matrix is
    read as and leaves the scales precise.

    Raises ValueError for a weight that is not finite.
    """

    values: Tensor
    scale: Tensor
    read_as: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        precise = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        absmax = precise.abs().amax(-1, keepdim=True)
        if not (absmax.is_meta or absmax.isfinite().all()):
            raise ValueError("has entries that are not finite, which no 8-bit number stands for")
        scale = (absmax / LARGEST).clamp_min(torch.finfo(absmax.dtype).tiny)
        self.register_buffer("values", (precise / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("read_as", weight.new_empty(0, requires_grad=False))

    @property
    def dtype(self) -> torch.dtype:
        return self.read_as.dtype

    def forward(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole matrix in floating point."""
        return (self.values * self.scale).to(dtype or self.dtype)

    def rows(self, index: Tensor) -> Tensor:
        """The rows (*index.shape, in) of a table (rows, in) in floating point."""
        return (self.values[index] * self.scale[index]).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Matrix:
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"{tuple(self.values.shape)}, read as {self.dtype}"


class Int8Module(nn.Module):
    """What stands in for a module with a matrix. `weight` is an Int8Matrix, the same one where matrices are shared."""

    def __init__(self, module: Any, weight: Int8Matrix):
        super().__init__()
        self.weight = weight
        self.train(module.training)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the matrix is read as."""
        return self.weight.dtype

    def matrix(self) -> Tensor:
        """The whole matrix in floating point."""
        return self.weight()


class Int8Linear(Int8Module):
    """Stands in for `nn.Linear`, with GELU where asked, in the type of x. Shapes: (..., K) -> (..., M)."""

    def __init__(self, module: nn.Linear, weight: Int8Matrix):
        super().__init__(module, weight)
        self.in_features, self.out_features, self.bias = module.in_features, module.out_features, module.bias

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return linear(x, self.weight(x.dtype), self.bias, gelu)


class Int8StackedLinear(Int8Module):
    """Stands in for `StackedLinear`, in the type of x. Shapes: (S, N, K) -> (S, N, M)."""

    def forward(self, x: Tensor) -> Tensor:
        return stacked_linear(x, self.weight(x.dtype))


class Int8Embedding(Int8Module):
    """Stands in for `nn.Embedding`; only the rows asked for become floating point."""

    def __init__(self, module: nn.Embedding, weight: Int8Matrix):
        super().__init__(module, weight)
        self.num_embeddings, self.embedding_dim = module.num_embeddings, module.embedding_dim

    def forward(self, input: Tensor) -> Tensor:
        return self.weight.rows(input)


class Int8EmbeddingBag(Int8Module):
    """Stands in for `nn.EmbeddingBag`; only the rows asked for become floating point, where these are fewer."""

    def __init__(self, module: nn.EmbeddingBag, weight: Int8Matrix):
        super().__init__(module, weight)
        self.num_embeddings, self.embedding_dim = module.num_embeddings, module.embedding_dim
        options = ("mode", "padding_idx", "include_last_offset")
        self.options: dict[str, Any] = {option: getattr(module, option) for option in options}

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        gathers_less = input.dim() == 2 and input.numel() < self.num_embeddings
        if gathers_less and self.options["padding_idx"] is None:
            table = self.weight.rows(input.flatten())
            input = torch.arange(input.numel(), device=input.device).view_as(input)
        else:
            table = self.matrix()
        return F.embedding_bag(input, table, offsets, per_sample_weights=per_sample_weights, **self.options)


# What is replaced, the `forward`s that its drop-in knows, and the drop-in.
DROP_INS: tuple[tuple[type[nn.Module], tuple[Any, ...], type[Int8Module]], ...] = (
    (nn.Linear, (nn.Linear.forward, Linear.forward), Int8Linear),
    (StackedLinear, (StackedLinear.forward,), Int8StackedLinear),
    (nn.Embedding, (nn.Embedding.forward,), Int8Embedding),
    (nn.EmbeddingBag, (nn.EmbeddingBag.forward,), Int8EmbeddingBag),
)


def _drop_in_of(module: nn.Module) -> type[Int8Module] | None:
    # A table with max_norm is rewritten whenever it is read; torch's attention reads its output's weight itself.
    if getattr(module, "max_norm", None) is None and not isinstance(module, NonDynamicallyQuantizableLinear):
        for original, forwards, drop_in in DROP_INS:
            if isinstance(module, original) and type(module).forward in forwards:
                return drop_in
    return None


def _drop_ins(model: nn.Module) -> Iterator[tuple[nn.Module, Int8Module]]:
    """Every module that is to be replaced, with its drop-in."""
    matrices: dict[tuple[nn.Parameter, Any], Int8Matrix] = {}
    for path, module in model.named_modules():
        drop_in = _drop_in_of(module)
        if drop_in is None:
            continue
        weight: Any = module.weight
        with torch.no_grad():
            matrix: Any = module.matrix() if hasattr(module, "matrix") else weight
        shared = (weight, None if matrix is weight else module)
        if shared not in matrices:
            try:
                matrices[shared] = Int8Matrix(matrix)
            except ValueError as error:
                raise ValueError(f"{path}.weight {error}".lstrip(".")) from None
        yield module, drop_in(module, matrices[shared])


class Int8:
    """The format: 8-bit matrices with one scale for each output channel."""

    class Config(ComponentConfig):
        kind: Literal["int8"] = "int8"

    def __init__(self, config: Config):
        self.config = config

    def apply(self, model: Model) -> Model:
        """Replace every matrix of a model, in place, and return the model (its drop-in if it is a matrix itself).

        The model can be run, moved, saved and loaded as before, takes about a quarter of the memory of float32
        weights, and remembers its format as `weight_format`; its matrices can no longer be trained. What is in this
        format already is left as it is. A model without weights yet, on the `meta` device, gets empty drop-ins.

        Raises ValueError that names a weight with entries that are not finite; the model is unchanged then.
        """
        drop_ins: dict[nn.Module, Any] = dict(_drop_ins(model))
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if child in drop_ins:
                    setattr(parent, name, drop_ins[child])
        model = drop_ins.get(model, model)
        model.weight_format = self.config  # type: ignore[assignment]
        return model


def quantize_int8(model: Model) -> Model:
    """Turn every matrix of a model into 8-bit numbers, in place: see `Int8.apply`."""
    return Int8(Int8.Config()).apply(model)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, shared ones counted once."""
    tensors = {tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return sum(tensor.nbytes for tensor in tensors)
