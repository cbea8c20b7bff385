"""The format `dense`: floating point."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from wavelet_core import ComponentConfig
from wavelet_quant.weight_format import StoredMatrix, WeightFormat


class DenseMatrix(StoredMatrix):
    """A matrix in floating point, in a type that stays. Buffer: values, of the matrix's shape."""

    values: Tensor

    def __init__(self, values: Tensor, read_as: torch.dtype):
        super().__init__(values.shape, read_as, values.device)
        self.register_buffer("values", values)

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.values.to(dtype or self.dtype)

    def rows(self, index: Tensor) -> Tensor:
        return self.values[index].to(self.dtype)


class FollowingMatrix(DenseMatrix):
    """A matrix in floating point, in the type that the model is in."""

    retyped = DenseMatrix.retyped | {"values"}


class Dense(WeightFormat):
    """Floating point, in the type that the model is in, or in one of its own."""

    class Config(ComponentConfig):
        kind: Literal["dense"] = "dense"
        dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
            None, description="type that the weights are stored in and stay in; null for the model's"
        )

    config: Config

    def store(self, weight: Tensor, hessian: Tensor | None = None) -> DenseMatrix:
        dtype = weight.dtype if self.config.dtype is None else getattr(torch, self.config.dtype)
        values = weight.detach().to(dtype)
        if not (values.is_meta or values.isfinite().all()):
            raise ValueError(f"has entries that are not finite in {dtype}")
        return (FollowingMatrix if self.config.dtype is None else DenseMatrix)(values, weight.dtype)
