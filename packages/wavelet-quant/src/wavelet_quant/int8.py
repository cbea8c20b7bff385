"""Weights in 8 bits: symmetric, one scale per output channel, in plain torch.

The published scheme: every matrix of the model, the token embedding and the head included, becomes whole numbers from
-127 to 127 times a scale, absmax / 127 of its output channel; biases, norms and scalars stay as they are. Weights are
turned back into floating point where they are used, so that the arithmetic is that of the unquantized model with
rounded weights. It is the reference that faster kernels are tested against: small in memory, not fast.

How it reaches modules that it has never heard of
- Every floating-point parameter of any module whose last two dimensions are both larger than one is a matrix. Its
  last dimension is the one that its product sums over; every index of the others is an output channel with a scale of
  its own. That is right for `nn.Linear` (out, in), for stacked matrices (S, out, in), and for tables of embeddings,
  keys or values (one scale per row).
- A module keeps parameters that look like matrices but are none, such as one gain per scale and channel, by naming
  them: `float_parameters = ("gains",)` in its class. Layer norms are kept always.
- The parameter is replaced by a child module, an `Int8Matrix` called `<name>_int8`, and the module's class by a
  subclass of it in which `<name>` is a property that gives the floating-point matrix. Code that reads `self.<name>`
  does not notice. A parameter that several modules share becomes one `Int8Matrix` that they share.
- Embeddings gather the rows that are asked for first, and turn only those into floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 127
SUFFIX = "_int8"

Model = TypeVar("Model", bound=nn.Module)


class Int8Matrix(nn.Module):
    """A matrix as 8-bit numbers and one scale per output channel; calling it gives floating point again.

    Buffers: values (..., out, in), int8; scale (..., out, 1), float32 at least. No entry is off by more than half its
    scale. `dtype` is the type that the matrix is read as; `.to(dtype)` changes it and leaves the scales precise.

    Raises ValueError for a weight that is not finite.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.dtype = weight.dtype
        precise = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        absmax = precise.abs().amax(-1, keepdim=True)
        if not (absmax.is_meta or absmax.isfinite().all()):
            raise ValueError("has entries that are not finite, which no 8-bit number stands for")
        scale = (absmax / LARGEST).clamp_min(torch.finfo(absmax.dtype).tiny)
        self.register_buffer("values", (precise / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self) -> Tensor:
        """The whole matrix in floating point."""
        return (self.values * self.scale).to(self.dtype)

    def rows(self, index: Tensor) -> Tensor:
        """The rows (*index.shape, in) of a table (rows, in) in floating point."""
        return (self.values[index] * self.scale[index]).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Matrix:
        scale = self.scale
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"{tuple(self.values.shape)}, read as {self.dtype}"


class _Int8Embedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        if self.max_norm is not None:
            return super().forward(input)
        matrix: Int8Matrix = getattr(self, "weight" + SUFFIX)
        rows: Tensor = matrix.rows(input)
        return rows


class _Int8EmbeddingBag(nn.EmbeddingBag):
    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        gathers_less = input.dim() == 2 and input.numel() < self.num_embeddings
        if not gathers_less or self.max_norm is not None or self.padding_idx is not None:
            return super().forward(input, offsets, per_sample_weights)
        matrix: Any = self.weight_int8
        places = torch.arange(input.numel(), device=input.device).view_as(input)
        return F.embedding_bag(
            places, matrix.rows(input.flatten()), mode=self.mode, per_sample_weights=per_sample_weights
        )


def _floating_point(name: str) -> property:
    """The attribute `name` of a module whose parameter of that name has become an Int8Matrix."""

    def read(module: nn.Module) -> Tensor:
        matrix: Int8Matrix = getattr(module, name + SUFFIX)
        return matrix()

    return property(read)


def _reading_int8(original: type[nn.Module], names: list[str]) -> type[nn.Module]:
    """A subclass of `original` in which the named parameters are read from their Int8Matrix."""
    bases: tuple[type, ...] = (original,)
    for table, gathering in ((nn.Embedding, _Int8Embedding), (nn.EmbeddingBag, _Int8EmbeddingBag)):
        if issubclass(original, table) and "weight" in names:
            bases = (gathering,) if original is table else (original, gathering)
    properties = {name: _floating_point(name) for name in names}
    return type(f"Int8{original.__name__}", bases, {"__module__": original.__module__, **properties})


def _matrices_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return
    kept = getattr(type(module), "float_parameters", ())
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if name not in kept and parameter.is_floating_point() and min((1, 1, *parameter.shape)[-2:]) > 1:
            yield name, parameter


def quantize_int8(model: Model) -> Model:
    """Turn every matrix of a model into 8-bit numbers, in place, and return the model.

    The model can be run, moved, saved and loaded by `state_dict` as before, and takes about a quarter of the memory of
    float32 weights; its matrices can no longer be trained. A model that is quantized already is left as it is.

    Raises ValueError that names a parameter with entries that are not finite.
    """
    done: dict[nn.Parameter, Int8Matrix] = {}
    for path, module in list(model.named_modules()):
        matrices = list(_matrices_of(module))
        for name, parameter in matrices:
            if parameter not in done:
                try:
                    done[parameter] = Int8Matrix(parameter)
                except ValueError as error:
                    raise ValueError(f"{path}.{name} {error}".lstrip(".")) from None
            delattr(module, name)
            module.add_module(name + SUFFIX, done[parameter])
        if matrices:
            module.__class__ = _reading_int8(type(module), [name for name, _ in matrices])
    return model


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, shared ones counted once."""
    tensors = {tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return sum(tensor.nbytes for tensor in tensors)
