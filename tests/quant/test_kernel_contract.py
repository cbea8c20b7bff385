"""The contract of kernels: ours keep it, and what breaks it is told what to change."""

import pytest
import torch

from wavelet_core.testing import check_component
from wavelet_quant import native_kernel
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_sets
from wavelet_quant.reference_kernel import Reference
from wavelet_quant.testing.kernel_contract import EXACT_ROWS


@pytest.mark.parametrize("name", instruction_sets())
def test_native_keeps_the_contract_with_every_instruction_set(monkeypatch, name):
    monkeypatch.setattr(native_kernel, "_most_rows", lambda *given: 1000)
    check_component(Native, Native.Config(instruction_set=name))


def test_reference_keeps_the_contract():
    check_component(Reference)


def break_kernel(method, change):
    class Broken(Reference):
        pass

    def broken(self, *given):
        return change(getattr(Reference, method)(self, *given), *given)

    setattr(Broken, method, broken)
    return Broken


def forget_the_tail(out, x, *given):
    return out.index_fill(-1, torch.tensor([out.shape[-1] - 1]), 0)


def round_halfway(out, x, *given):
    return out.bfloat16().to(out.dtype)


def round_many_rows(out, x, *given):
    return out.bfloat16().to(out.dtype) if x.shape[-2] > EXACT_ROWS else out


def write_to_x(out, x, *given):
    x.zero_()
    return out


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (break_kernel("available", lambda out: False), "answers False to `available"),
        (break_kernel("accepts_packed", lambda out, *given: False), "accepts no product"),
        (break_kernel("packed_linear", forget_the_tail), "is wrong for a packed product"),
        (break_kernel("packed_linear", round_halfway), "is wrong for a packed product"),
        (break_kernel("packed_linear", round_many_rows), "of 33 rows, asked for as single rows, with a matrix"),
        (break_kernel("packed_linear", lambda out, *given: out.double()), "in the type and place of x"),
        (break_kernel("packed_linear", lambda out, *given: out[..., :0]), r"return \(1, 1\)"),
        (break_kernel("packed_linear", lambda *given: 1 / 0), "ZeroDivisionError"),
        (break_kernel("packed_linear", write_to_x), "changes its operands"),
        (break_kernel("accepts", lambda out, *given: True), "multiplies packed matrices only"),
    ],
)
def test_a_broken_kernel_is_told_what_to_change(broken, says):
    with pytest.raises(AssertionError, match=says):
        check_component(broken, kind="kernel")


def test_shapes_that_do_not_fit_are_not_accepted():
    class Rash(Reference):
        def accepts(self, x, weight, bias=None):
            return x.numel() == 2 * 63

    with pytest.raises(AssertionError, match=r"accepts x \(2, 63\) with a weight \(32, 64\)"):
        check_component(Rash, kind="kernel")
