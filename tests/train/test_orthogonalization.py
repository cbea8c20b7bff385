"""Orthogonalised matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wavelet_train import orthogonalization
from wavelet_train.orthogonalization import orthogonalize_all


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonalization, "resolve_precision", lambda precision, device: torch.float32)


def random_matrices(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_singular_values_come_near_one(precision: torch.dtype, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonalization, "resolve_precision", lambda *_: precision)
    (result,) = orthogonalize_all([scale * random_matrices((3, 8, 20))[0]], iterations=8)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3


def test_singular_vectors_stay() -> None:
    (matrix,) = random_matrices((5, 7))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    (result,) = orthogonalize_all([matrix], iterations=5)
    inner = left.T @ result @ right.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-4, rtol=0)
    assert (inner.diagonal() > 0.3).all()


@given(sides=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5))
def test_every_matrix_of_a_stack_is_orthogonalised_by_itself(sides: list[tuple[int, int, int]]) -> None:
    stacks = random_matrices(*sides)
    for stack, result in zip(stacks, orthogonalize_all(stacks, 5), strict=True):
        for matrix, part in zip(stack, result, strict=True):
            torch.testing.assert_close(part, orthogonalize_all([matrix], 5)[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(part, orthogonalize_all([matrix.T], 5)[0].T, atol=1e-4, rtol=0)


def test_equal_shapes_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def counted(matrices: Tensor, iterations: int) -> Tensor:
        batches.append(tuple(matrices.shape))
        return matrices

    monkeypatch.setattr(orthogonalization, "orthogonalized", counted)
    orthogonalize_all(random_matrices((4, 6), (3, 6, 4), (2, 2), (1, 4, 6)), 5)
    assert batches == [(5, 4, 6), (1, 2, 2)]


def test_zeros_stay_zeros() -> None:
    (result,) = orthogonalize_all([torch.zeros(3, 4)], 5)
    assert (result == 0).all()


def test_sharded_matrices_are_orthogonalised_whole() -> None:
    """With one process: that it gathers and places what it makes."""
    from torch import distributed
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        (matrix,) = random_matrices((6, 4))
        sharded = distribute_tensor(matrix, init_device_mesh("cpu", (1,)), [Shard(0)])
        (result,) = orthogonalize_all([sharded], 5)
        assert isinstance(result, DTensor) and result.placements == sharded.placements
        torch.testing.assert_close(result.full_tensor(), orthogonalize_all([matrix], 5)[0])
    finally:
        distributed.destroy_process_group()
