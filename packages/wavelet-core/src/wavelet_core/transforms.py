"""Orthogonal transforms over the channel axis, around the mixer (docs/model.md, sections 2 and 11).

A transform maps (..., P) to (..., P), has an `inverse`, keeps norms, and says through `padded_width` how wide the
channels must be.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wavelet_core.config import ComponentConfig, ModelShape, next_power_of_two
from wavelet_core.kernels import active_kernels


def hadamard(size: int) -> Tensor:
    """The Hadamard matrix of Sylvester's order, entries +1 and -1; size is a power of two."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def _walsh_hadamard(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x times the Kronecker product of two Hadamard matrices, divided by the square root of its size.

    The result lies in memory as x does.
    """
    order = sorted(range(x.dim() - 1), key=x.stride, reverse=True)
    rows = x.permute(*order, -1)
    kernel = next((kernel for kernel in active_kernels() if kernel.accepts_walsh_hadamard(rows)), None)
    transformed = _by_products(rows, left, right) if kernel is None else kernel.walsh_hadamard(rows)
    return transformed.permute(*(order.index(i) for i in range(len(order))), -1)


def _by_products(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    a, b = len(left), len(right)
    right = right.to(rows.dtype)
    blocks = torch.addmm(right[0], rows.reshape(-1, b), right, beta=0, alpha=(a * b) ** -0.5).view(-1, a, b)
    if rows.dtype.itemsize > 2:
        blocks = torch.matmul(left.to(rows.dtype), blocks)
    else:  # torch is slow in multiplying many small matrices of 16 bits, and fast in one long product
        blocks = (blocks.mT.reshape(-1, a) @ left.to(rows.dtype)).view(-1, b, a).mT
    return blocks.reshape(rows.shape)


class _SelfInverse(torch.autograd.Function):
    """The symmetric orthogonal transform as one node of the graph: its backward is itself and needs no activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.left, ctx.right = left, right
        return _walsh_hadamard(x, left, right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _SelfInverse.apply(gradient, ctx.left, ctx.right), None, None


class AnyWidthTransform(nn.Module):
    """A transform that exists for every width, and so needs no padding."""

    def __init__(self, config: ComponentConfig, shape: ModelShape):
        super().__init__()

    @staticmethod
    def padded_width(width: int) -> int:
        """How wide `width` channels must be made."""
        return width


class WalshHadamard(nn.Module):
    """The orthonormal Walsh-Hadamard transform, its own inverse (docs/model.md, section 2).

    H of size P = a * b is the Kronecker product of H_a and H_b, so two small products of a + b multiply-adds a
    channel replace the P of a dense one (P = 2048: 96, 21 times fewer), and both run as matrix products. The
    factors hold only +1 and -1, exact in every floating type.

    Shapes: (..., P) -> (..., P), P a power of two.
    """

    class Config(ComponentConfig):
        kind: Literal["walsh_hadamard"] = "walsh_hadamard"

    left: Tensor
    right: Tensor

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        width = shape.padded_width
        if width != next_power_of_two(width):
            raise ValueError(f"walsh_hadamard needs a padded width that is a power of two, not {width}")
        left = 1 << (int(math.log2(width)) // 2)
        self.register_buffer("left", torch.empty(left, left), persistent=False)
        self.register_buffer("right", torch.empty(width // left, width // left), persistent=False)
        self.reset_buffers()

    padded_width = staticmethod(next_power_of_two)

    def reset_buffers(self) -> None:
        self.left.copy_(hadamard(self.left.shape[0]))
        self.right.copy_(hadamard(self.right.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        transform = _SelfInverse.apply if torch.is_grad_enabled() else _walsh_hadamard
        return transform(x, self.left, self.right)

    inverse = forward


class Identity(AnyWidthTransform):
    """No transform: the mixer works on the wavelet coefficients themselves. Shapes: (..., P) -> (..., P)."""

    class Config(ComponentConfig):
        kind: Literal["identity"] = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x

    inverse = forward


class Hartley(AnyWidthTransform):
    """The orthonormal discrete Hartley transform, its own inverse, by a fast Fourier transform in at least float32.

    Shapes: (..., P) -> (..., P).
    """

    class Config(ComponentConfig):
        kind: Literal["hartley"] = "hartley"

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        spectrum = torch.fft.fft(wide, norm="ortho")
        return (spectrum.real - spectrum.imag).to(x.dtype)

    inverse = forward


class DiscreteCosine(AnyWidthTransform):
    """The orthonormal discrete cosine transform of type II; the inverse is its transpose.

    Shapes: (..., P) -> (..., P).
    """

    class Config(ComponentConfig):
        kind: Literal["discrete_cosine"] = "discrete_cosine"

    basis: Tensor

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__(config, shape)
        self.register_buffer("basis", torch.empty(shape.padded_width, shape.padded_width), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        size = self.basis.shape[0]
        index = torch.arange(size, dtype=torch.float64)
        basis = torch.cos(math.pi / size * (index + 0.5)[:, None] * index) * math.sqrt(2 / size)
        basis[:, 0] = size**-0.5
        self.basis.copy_(basis)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.basis.to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        return x @ self.basis.T.to(x.dtype)


class LearnedButterfly(nn.Module):
    """log2(P) layers of learned 2 x 2 rotations in the pattern of a fast Fourier transform (docs/model.md, section 11).

    Layer i rotates channels 2^i apart; zero angles are the identity. The inverse applies the opposite rotations in
    the opposite order. Shapes: (..., P) -> (..., P), P a power of two; angles (log2 P, P / 2).
    """

    class Config(ComponentConfig):
        kind: Literal["learned_butterfly"] = "learned_butterfly"

    def __init__(self, config: Config, shape: ModelShape):
        super().__init__()
        self.layers = int(math.log2(shape.padded_width))
        self.angles = nn.Parameter(torch.zeros(self.layers, shape.padded_width // 2))

    padded_width = staticmethod(next_power_of_two)

    def _rotate(self, x: Tensor, layer: int, direction: int) -> Tensor:
        stride = 1 << layer
        pairs = x.unflatten(-1, (-1, 2, stride))
        angles = self.angles[layer].view(-1, stride)
        cosine, sine = angles.cos().to(x.dtype), (direction * angles.sin()).to(x.dtype)
        first, second = pairs.unbind(-2)
        rotated = torch.stack([cosine * first - sine * second, sine * first + cosine * second], dim=-2)
        return rotated.flatten(-3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(self.layers):
            x = self._rotate(x, layer, 1)
        return x

    def inverse(self, x: Tensor) -> Tensor:
        for layer in reversed(range(self.layers)):
            x = self._rotate(x, layer, -1)
        return x
