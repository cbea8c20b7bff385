"""Matrices with all singular values brought near 1, many at a time (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wavelet_train.precision import resolve_precision

# Coefficients of the quintic that pulls singular values from (0, 1] towards 1 fastest.
QUINTIC = (3.4445, -4.7750, 2.0315)
SMALLEST_NORM = 1e-7


def orthogonalize_all(tensors: Sequence[Tensor], iterations: int) -> list[Tensor]:
    """Orthogonalised copies of matrices (M, K) and stacks of them (S, M, K), every matrix of a stack by itself.

    All that have the same sides, whichever is the longer, are computed in one batch. What is sharded over processes is
    gathered first, and every process computes it whole and keeps its part.
    """
    wide = [tensor.mT if _is_tall(tensor) else tensor for tensor in map(_gathered, tensors)]
    by_shape: dict[torch.Size, list[int]] = {}
    for index, tensor in enumerate(wide):
        by_shape.setdefault(tensor.shape[-2:], []).append(index)
    results = list(tensors)
    for shape, indices in by_shape.items():
        stacks = [wide[index].reshape(-1, *shape) for index in indices]
        batch = orthogonalized(torch.cat(stacks), iterations)
        for index, result in zip(indices, batch.split([len(stack) for stack in stacks]), strict=True):
            like = tensors[index]
            result = (result.mT if _is_tall(like) else result).reshape(like.shape)
            results[index] = _sharded_like(like, result) if _is_sharded(like) else result
    return results


def orthogonalized(matrices: Tensor, iterations: int) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices: after 5 iterations most singular values are between 0.7 and 1.2.

    Newton-Schulz iterations, in bfloat16 where the device multiplies it natively. Shapes: (N, M, K) with M <= K.
    """
    a, b, c = QUINTIC
    norms = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = (matrices / norms.clamp(min=SMALLEST_NORM)).to(resolve_precision("auto", matrices.device))
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def _is_tall(tensor: Tensor) -> bool:
    return tensor.shape[-2] > tensor.shape[-1]


def _is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `torch.distributed.tensor.DTensor`, which takes long to import."""
    return hasattr(tensor, "full_tensor")


def _gathered(tensor: Any) -> Tensor:
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def _sharded_like(tensor: Any, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
