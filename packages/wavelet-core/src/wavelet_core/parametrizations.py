"""How a mixer's square matrices come from their parameters (docs/model.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.computed import Computed
from wavelet_core.linear import StackedLinear

Parametrization = Literal["direct", "spectral_norm", "exponential"]


class DirectMatrices(StackedLinear):
    """n square matrices (n, w, w) as they are, starting at the identity plus noise."""

    def __init__(self, count: int, width: int, noise: float):
        super().__init__(count, width, width, std=noise)
        with torch.no_grad():
            self.weight.add_(torch.eye(width))


class SpectralNormMatrices(DirectMatrices, Computed):
    """n square matrices, each divided by its largest singular value (Miyato et al. 2018).

    The singular value comes from power iteration: one step per training pass, none in evaluation.
    """

    left: Tensor
    right: Tensor

    def __init__(self, count: int, width: int, noise: float):
        super().__init__(count, width, noise)
        self.register_buffer("left", F.normalize(torch.randn(count, width), dim=-1))
        self.register_buffer("right", F.normalize(torch.randn(count, width), dim=-1))
        for _ in range(15):
            self._iterate()

    @torch.no_grad()
    def _iterate(self) -> None:
        self.right.copy_(F.normalize(torch.einsum("noi,no->ni", self.weight, self.left), dim=-1))
        self.left.copy_(F.normalize(torch.einsum("noi,ni->no", self.weight, self.right), dim=-1))

    def compute(self) -> Tensor:
        if self.training:
            self._iterate()
        left, right = self.left.clone(), self.right.clone()
        norms = torch.einsum("no,noi,ni->n", left, self.weight, right)
        return self.weight / norms[:, None, None]

    def matrix(self) -> Tensor:
        return self.computed()


class ExponentialMatrices(StackedLinear, Computed):
    """n matrices exp(A): always invertible, with positive determinant; A starts as noise, exp(A) near the identity."""

    def __init__(self, count: int, width: int, noise: float):
        super().__init__(count, width, width, std=noise)

    def compute(self) -> Tensor:
        return torch.matrix_exp(self.weight.float()).to(self.weight.dtype)

    def matrix(self) -> Tensor:
        return self.computed()


PARAMETRIZATIONS: dict[Parametrization, Callable[[int, int, float], StackedLinear]] = {
    "direct": DirectMatrices,
    "spectral_norm": SpectralNormMatrices,
    "exponential": ExponentialMatrices,
}
