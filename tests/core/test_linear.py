"""Linear maps: the kernel that reads a matrix once gives what torch gives, and stays away where it cannot."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from wavelet_core import few_rows
from wavelet_core.linear import MOST_ROWS, SMALLEST_MATRIX, Linear, linear, stacked_linear
from wavelet_quant.decode_benchmark import matrix_products

needs_kernel = pytest.mark.skipif(not few_rows.available, reason="the native kernel is not installed here")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def calls(monkeypatch):
    """The shapes of what the kernel is asked to multiply."""
    seen = []
    kernel = few_rows.few_rows
    monkeypatch.setattr(few_rows, "few_rows", lambda x, *given: seen.append(tuple(x.shape)) or kernel(x, *given))
    return seen


def numbers(*size, dtype=torch.float32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_the_kernel_is_there_where_it_can_be_built():
    buildable = platform.machine() == "x86_64" and any(map(shutil.which, ("c++", "g++", "clang++")))
    if not buildable or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("no x86-64 with AVX2, or no C++ compiler")
    assert few_rows.available == (os.environ.get("WAVELET_NATIVE") != "0")


@needs_kernel
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [512, 515, 3])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_multiplies_like_torch(calls, dtype, width, gelu, bias):
    height = SMALLEST_MATRIX // width + 1  # odd and even numbers of rows, whole and ragged columns
    weight = (numbers(height, width) * width**-0.5).to(dtype)
    b = numbers(height, dtype=dtype, seed=1) if bias else None
    counts = [*range(1, 14), 16, 17, 24, 25, 33, 41, MOST_ROWS]
    for rows in counts:
        x = numbers(1, rows, width, dtype=dtype, seed=rows)
        with torch.no_grad():
            out = linear(x, weight, b, gelu)
        expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
        expected = F.gelu(expected) if gelu else expected
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert len(calls) == len(counts)


@needs_kernel
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("threads", [1, 2, 3, 60])
@pytest.mark.parametrize("rows", [5, 30])
def test_the_kernel_multiplies_stacks_on_any_number_of_threads(calls, dtype, threads, rows):
    weight = (numbers(2, 257, 256) / 16).to(dtype)
    x = numbers(rows, 2, 256, dtype=dtype).transpose(0, 1)  # as the mixers hand it over: not contiguous
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            out = stacked_linear(x, weight)
    finally:
        torch.set_num_threads(before)
    expected = torch.bmm(x.double(), weight.double().mT)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert calls == [(2, rows, 256)]


def test_gelu_is_exact_far_from_zero():
    """The kernel's error function is an approximation: at the worst 2e-6 off, on values up to 10."""
    bias = torch.linspace(-10, 10, SMALLEST_MATRIX)
    with torch.no_grad():
        out = linear(torch.zeros(1, 1), torch.zeros(SMALLEST_MATRIX, 1), bias, gelu=True)[0]
    torch.testing.assert_close(out, F.gelu(bias), atol=2e-6, rtol=0)


@pytest.mark.parametrize("reason", ["gradients", "many rows", "small matrix", "autocast", "strided", "double", "off"])
def test_torch_multiplies_what_the_kernel_cannot(calls, monkeypatch, reason):
    dtype = torch.float64 if reason == "double" else torch.float32
    weight = numbers(256, 8 if reason == "small matrix" else 256, dtype=dtype)
    weight = weight.mT if reason == "strided" else weight
    x = numbers(MOST_ROWS + 1 if reason == "many rows" else 2, weight.shape[1], dtype=dtype)
    if reason == "off":
        monkeypatch.setattr(few_rows, "available", False)
    with torch.set_grad_enabled(reason == "gradients"), torch.autocast("cpu", enabled=reason == "autocast"):
        out = linear(x, weight)
        assert torch.equal(out, F.linear(x, weight))
    assert calls == []


def test_meta_and_fake_tensors_keep_their_kind():
    for mode in (torch.device("meta"), FakeTensorMode()):
        with mode, torch.no_grad():
            out = Linear(256, 256)(torch.zeros(1, 2, 256))
        assert out.shape == (1, 2, 256)


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [((2, 255), (256, 256), 256), ((2, 256), (2, 256, 256), 256), ((2, 256), (256, 256), 255)],
    ids=["other width", "a stack", "other bias"],
)
def test_what_does_not_fit_is_left_to_torch(calls, x, weight, bias):
    with torch.no_grad(), pytest.raises(RuntimeError):
        linear(torch.zeros(x), torch.zeros(weight), torch.zeros(bias))
    assert calls == []


def test_a_bias_for_all_outputs_is_left_to_torch():
    with torch.no_grad():
        assert torch.equal(linear(torch.zeros(2, 256), torch.zeros(256, 256), torch.ones(1)), torch.ones(2, 256))


@pytest.mark.parametrize(("x", "weight"), [((1, 2, 256), (2, 256, 256)), ((2, 256), (2, 256, 256))])
def test_stacks_that_do_not_fit_are_left_to_torch(calls, x, weight):
    with torch.no_grad(), pytest.raises(RuntimeError):
        stacked_linear(torch.zeros(x), torch.zeros(weight))
    assert calls == []


@needs_kernel
def test_a_model_decodes_alike_with_and_without_the_kernel(make_model, calls, monkeypatch):
    model = make_model({"width": 256, "layers": 1, "levels": 2})
    tokens = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        ours = model(tokens, model.new_state(2))
        assert calls
        monkeypatch.setattr(few_rows, "available", False)
        torch.testing.assert_close(ours, model(tokens, model.new_state(2)), atol=1e-4, rtol=1e-4)


@needs_kernel
def test_the_benchmark_counts_the_kernels_products(make_model, calls):
    model = make_model({"width": 256, "layers": 1, "levels": 2})
    with torch.inference_mode():
        products = matrix_products(model)
        recorded = len(calls)
        products()
    assert recorded > 0
    assert len(calls) == 2 * recorded


def test_the_kernel_can_be_switched_off():
    program = "from wavelet_core import few_rows; print(few_rows.available)"
    environment = {**os.environ, "WAVELET_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
