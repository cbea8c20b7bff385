"""The contract of a weight format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavelet_core.testing.subject import Subject
from wavelet_quant.weight_format import StoredMatrix

SHAPES = ((5, 128), (40, 256), (3, 20, 128))  # each fits every group of channels; rows fill no block
TOLERANCE = 1e-3  # of a product, in multiples of the norms of its factors


def _store(subject: Subject, weight: Tensor, hessian: Tensor | None = None) -> StoredMatrix:
    with subject.expecting(
        f"storing a weight {list(weight.shape)} {weight.dtype} on {weight.device}",
        "store(weight, hessian=None) takes (M, K) and (S, M, K), also without values on the meta device",
    ):
        stored: Any = subject.component(subject.config).store(weight, hessian)
    if not isinstance(stored, StoredMatrix):
        subject.fail(f"stores a {type(stored).__qualname__}", "return a wavelet_quant.StoredMatrix")
    return stored


def _weights(subject: Subject) -> list[Tensor]:
    made = subject.component(subject.config)
    weights = [torch.randn(shape) for shape in SHAPES if made.fits(torch.Size(shape))]
    if not weights:
        subject.fail(f"fits none of {[list(shape) for shape in SHAPES]}", "let fits(shape) accept some matrices")
    return weights


def _check_matrix(subject: Subject) -> None:
    for weight in _weights(subject):
        for dtype in (torch.float32, torch.bfloat16):
            stored = _store(subject, weight.to(dtype))
            matrix = stored.matrix()
            if matrix.shape != weight.shape or stored.shape != tuple(weight.shape):
                subject.fail(f"gives a matrix {list(matrix.shape)} for a weight {list(weight.shape)}", "keep the shape")
            types = (matrix.dtype, stored.dtype, stored.matrix(torch.float64).dtype)
            if types != (dtype, dtype, torch.float64):
                subject.fail(
                    f"gives a matrix of {matrix.dtype} for a weight of {dtype}",
                    "read it as the weight's type, and matrix(dtype) as the type that is asked for",
                )
        if (matrix.float() - weight).norm() >= weight.norm():
            subject.fail("stores a matrix that is no nearer to the weight than zeros are", "store the weight")


def _check_rows(subject: Subject) -> None:
    for weight in _weights(subject):
        if weight.dim() == 2:
            stored = _store(subject, weight)
            index = torch.tensor([[0, len(weight) - 1], [2, 2]])
            with subject.expecting("gathering rows", "rows(index) takes any shape of index: (*index.shape, K)"):
                rows = stored.rows(index)
            if not torch.equal(rows, stored.matrix()[index]):
                subject.fail("gathers rows that are not those of its matrix", "let rows(index) be matrix()[index]")


@torch.no_grad()
def _check_products(subject: Subject) -> None:
    for weight in _weights(subject):
        stored, matrix = _store(subject, weight), _store(subject, weight).matrix()
        for rows in (1, 3):
            x = torch.randn(*weight.shape[:-2], rows, weight.shape[-1])
            bias = torch.randn(weight.shape[-2]) if weight.dim() == 2 else None
            with subject.expecting("multiplying", "a stored matrix is called with (x, bias=None, gelu=False)"):
                product = stored(x) if bias is None else stored(x, bias)
                narrow = stored(x.bfloat16())
            expected = x @ matrix.mT if bias is None else x @ matrix.mT + bias
            size = x.norm(dim=-1).max() * matrix.norm(dim=-1).max() + 1
            if product.shape != expected.shape or (product - expected).abs().max() > TOLERANCE * size:
                subject.fail("gives a product that is not that of its matrix", "multiply with what matrix() gives")
            if narrow.dtype is not torch.bfloat16:
                subject.fail(f"gives {narrow.dtype} for bfloat16", "multiply in the type of x")


def _check_stacks(subject: Subject) -> None:
    for weight in _weights(subject):
        if weight.dim() == 3:
            alone = [_store(subject, weight[s : s + 1]).matrix()[0] for s in range(len(weight))]
            if not torch.equal(torch.stack(alone), _store(subject, weight).matrix()):
                subject.fail(
                    "stores a matrix of a stack otherwise than alone",
                    "treat the matrices of a stack independently of each other",
                )


def _check_checkpoints(subject: Subject) -> None:
    for weight in _weights(subject):
        stored, other = _store(subject, weight), _store(subject, torch.randn_like(weight))
        if list(stored.parameters()):
            subject.fail("has parameters", "register what is stored as buffers")
        other.load_state_dict(stored.state_dict())
        if not torch.equal(other.matrix(), stored.matrix()):
            subject.fail("is another matrix after load_state_dict", "keep all that is stored in persistent buffers")
        empty = _store(subject, weight.to("meta"))
        sizes = [
            {name: (tensor.shape, tensor.dtype) for name, tensor in one.state_dict().items()} for one in (stored, empty)
        ]
        if sizes[0] != sizes[1] or not all(tensor.is_meta for tensor in empty.state_dict().values()):
            subject.fail(
                "has other buffers for a weight on the meta device",
                "decide on names, shapes and types by the shape of the weight alone",
            )


def _check_types(subject: Subject) -> None:
    stored = _store(subject, _weights(subject)[0]).to(torch.bfloat16)
    if stored.dtype is not torch.bfloat16 or stored.matrix().dtype is not torch.bfloat16:
        subject.fail("is not read as bfloat16 after .to(torch.bfloat16)", "read it as StoredMatrix.dtype says")


def _check_refusals(subject: Subject) -> None:
    weight = _weights(subject)[0]
    weight[0, 0] = torch.nan
    try:
        subject.component(subject.config).store(weight)
    except ValueError:
        return
    subject.fail("stores a weight with NaN", 'raise ValueError("has entries that are not finite")')


def _check_hessians(subject: Subject) -> None:
    weight = _weights(subject)[0]
    width = weight.shape[-1]
    inputs = torch.randn(2, 200, width // 2)
    stored = _store(subject, weight, inputs.mT @ inputs)
    if stored.state_dict().keys() != _store(subject, weight).state_dict().keys():
        subject.fail("has other buffers with a hessian", "let a hessian change how a weight is rounded and no more")


FORMAT_CHECKS = (
    _check_matrix,
    _check_rows,
    _check_products,
    _check_stacks,
    _check_checkpoints,
    _check_types,
    _check_refusals,
    _check_hessians,
)
