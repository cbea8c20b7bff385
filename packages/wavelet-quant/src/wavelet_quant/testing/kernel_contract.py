"""The contract of a kernel: for every shape, what torch gives in double precision, or a refusal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wavelet_core.kernels import Kernel, as_single_rows
from wavelet_core.testing.subject import Subject
from wavelet_quant.packed import PackedMatrix
from wavelet_quant.packed_kernel import PackedKernel

# Of the sum of |x_k w_k|, all weights times the largest x: integers of 16 bits, a rounded weight, a rounded sum.
TOLERANCE = {torch.float32: 2**-14, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# And integers of 8 bits, which more rows than these may become where the matrix is packed.
EXACT_ROWS, BYTES = 8, 2**-8
ROWS = (1, 2, 3, 5, 13, 33, 70)
SINGLE = 33  # of ROWS, asked for as single rows
# Height and width: one row, one channel, tails of blocks and of words, more than a tile of each.
DENSE = ((1, 1), (1, 300), (17, 31), (65, 129), (130, 256))
PACKED = (  # bits, group, height, width
    (8, None, 1, 1),
    (8, None, 17, 131),
    (8, None, 65, 260),
    (4, None, 33, 37),
    (4, 32, 1, 96),
    (4, 64, 70, 192),
    (4, 128, 17, 128),
    (2, None, 5, 17),
    (2, 32, 49, 160),
    (2, 64, 130, 128),
)
FORMS = ("plain", "bias", "gelu", "stack", "strided")


def _made(subject: Subject) -> Any:
    with subject.expecting(
        f"being made as {subject.component.__name__}(config)", "give __init__ the parameter `config`"
    ):
        kernel = subject.component(subject.config)
        available = kernel.available()
    if available is not True:
        subject.fail(f"answers {available!r} to `available()`", "run this check on a machine that can run the kernel")
    return kernel


def _devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _operands(form: str, rows: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    stack = [2] if form == "stack" else []
    weight = torch.randn(*stack, height, width) * width**-0.5
    x = torch.randn(*stack, width, rows).mT if form == "strided" else torch.randn(*stack, rows, width)
    return x, weight, torch.randn(height) if form in ("bias", "gelu") else None


def _compare(
    subject: Subject,
    what: str,
    out: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool,
    tolerance: float,
) -> None:
    expected = x.double() @ weight.double().mT + (0 if bias is None else bias.double())
    expected = F.gelu(expected) if gelu else expected
    if not isinstance(out, Tensor) or (out.shape, out.dtype, out.device) != (expected.shape, x.dtype, x.device):
        found = f"{tuple(out.shape)} {out.dtype} on {out.device}" if isinstance(out, Tensor) else type(out).__name__
        subject.fail(f"gives {found} for {what}", f"return {tuple(expected.shape)} in the type and place of x")
    size = weight.double().abs().sum(-1)[..., None, :] * x.double().abs().amax(-1, keepdim=True)
    off = (out.double() - expected).abs() / (size + expected.abs() + (0 if bias is None else bias.double().abs()))
    if not bool((off <= tolerance).all()):
        place = tuple(int(i) for i in torch.unravel_index(off.nan_to_num(torch.inf).argmax(), off.shape))
        subject.fail(
            f"is wrong for {what}: {out[place].item():.6g} at {place} instead of {expected[place].item():.6g}",
            "give what torch gives up to rounding, in tails of rows and channels too, or do not accept the product",
        )


def _computed(subject: Subject, what: str, product: Callable[..., Any], *arguments: Any) -> Any:
    """What a product gives, which must leave its operands as they are."""
    before = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    with subject.expecting(f"computing {what}", "do not accept what it cannot compute"):
        out = product(*arguments)
    for now, then in zip(arguments, before, strict=True):
        if isinstance(now, Tensor) and not torch.equal(now, then):
            subject.fail(f"changes its operands in {what}", "write to nothing but the result")
    return out


def _dense_products(subject: Subject, kernel: Kernel, device: str, dtype: torch.dtype, form: str, rows: int) -> int:
    accepted = 0
    for height, width in DENSE:
        x, weight, bias = _operands(form, rows, height, width)
        x, weight = x.to(device, dtype), weight.to(device, dtype)
        bias = None if bias is None else bias.to(device, dtype)
        if not kernel.accepts(x, weight, bias):
            continue
        accepted += 1
        what = f"a product ({form}) of {rows} rows with a matrix {height} x {width} in {dtype} on {device}"
        gelu = form == "gelu"
        if form == "stack":
            out = _computed(subject, what, kernel.stacked_linear, x, weight)
        else:
            out = _computed(subject, what, kernel.linear, x, weight, bias, gelu)
        _compare(subject, what, out, x, weight, bias, gelu, TOLERANCE[dtype])
    return accepted


def _packed_products(
    subject: Subject, kernel: PackedKernel, device: str, dtype: torch.dtype, form: str, rows: int
) -> int:
    accepted = 0
    for number, (bits, group, height, width) in enumerate(PACKED):
        x, weight, bias = _operands(form, rows, height, width)
        scale_type = list(TOLERANCE)[(number + rows) % len(TOLERANCE)]
        packed = PackedMatrix.quantized(weight, bits, group, scale_type).to(device)
        x, bias = x.to(device, dtype), None if bias is None else bias.to(device)
        operands = (x, packed.values, packed.scales, bias)
        if not kernel.accepts_packed(*operands, bits):
            continue
        accepted += 1
        single = rows == SINGLE
        what = (
            f"a packed product ({form}) of {rows} rows{', asked for as single rows,' if single else ''} "
            f"with a matrix {height} x {width} of {bits} bits, "
            f"group {group}, scales {scale_type}, in {dtype} on {device}"
        )
        gelu = form == "gelu"
        with as_single_rows() if single else nullcontext():
            out = _computed(subject, what, kernel.packed_linear, *operands, bits, height, gelu)
        tolerance = TOLERANCE[dtype] + (BYTES if rows > EXACT_ROWS and not single else 0)
        _compare(subject, what, out, x, packed.matrix(), bias, gelu, tolerance)
    return accepted


def _check_products(subject: Subject) -> None:
    kernel = _made(subject)
    accepted = 0
    with torch.no_grad():
        for device, dtype, form, rows in itertools.product(_devices(), TOLERANCE, FORMS, ROWS):
            accepted += _dense_products(subject, kernel, device, dtype, form, rows)
            if isinstance(kernel, PackedKernel):
                accepted += _packed_products(subject, kernel, device, dtype, form, rows)
    if not accepted:
        subject.fail("accepts no product", "answer True in `accepts` or `accepts_packed` for products that it computes")


def _check_refusals(subject: Subject) -> None:
    kernel = _made(subject)
    for device in _devices():
        for dtype in TOLERANCE:
            for x, weight, bias in (
                ((2, 63), (32, 64), None),
                ((2, 64), (32, 64), 31),
                ((3, 2, 64), (2, 32, 64), None),
            ):
                operands = (
                    torch.zeros(x, device=device, dtype=dtype),
                    torch.zeros(weight, device=device, dtype=dtype),
                    None if bias is None else torch.zeros(bias, device=device, dtype=dtype),
                )
                with subject.expecting(f"being asked for x {x} and a weight {weight}", "let `accepts` raise nothing"):
                    accepted = kernel.accepts(*operands)
                if accepted:
                    subject.fail(
                        f"accepts x {x} with a weight {weight} and {'no bias' if bias is None else f'{bias} biases'}",
                        "leave shapes that do not fit to torch, which refuses them",
                    )


KERNEL_CHECKS = (_check_products, _check_refusals)
