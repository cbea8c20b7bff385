"""The native kernel: it gives what torch gives, stays away where it cannot, and is seen as an operator."""

import os
import shutil

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from wavelet_core import ModelConfig, ModelShape, WalshHadamard, build_model, kernels
from wavelet_core.linear import SMALLEST_MATRIX, Linear, linear, stacked_linear
from wavelet_core.transforms import hadamard
from wavelet_memory.gated_delta_rule import gated_delta_rule
from wavelet_quant import native_kernel
from wavelet_quant.decode_benchmark import matrix_products
from wavelet_quant.native_kernel import SMALLEST_COMPILED, Native
from wavelet_quant.native_library import instruction_sets

MOST_ROWS = 64  # as if more had been found slower here
KERNEL = Native(Native.Config())
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

needs_kernel = pytest.mark.skipif(not KERNEL.available(), reason="the native kernel is not installed here")


@pytest.fixture(autouse=True)
def active(monkeypatch):
    """The kernel is the active one, whatever the environment says."""
    monkeypatch.setattr(kernels, "_chosen", [(KERNEL,) if KERNEL.available() else ()])
    monkeypatch.setattr(native_kernel, "_most_rows", lambda *given: MOST_ROWS)


@pytest.fixture
def calls(monkeypatch):
    """The shapes of what the kernel is asked to multiply."""
    seen = []
    multiply = native_kernel._multiply
    monkeypatch.setattr(
        native_kernel, "_multiply", lambda x, *given: seen.append(tuple(x.shape)) or multiply(x, *given)
    )
    return seen


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(
        ModelConfig.model_validate({"vocabulary_size": 61, "width": 512, "layers": 1, "levels": 2})
    ).eval()


class Operators(TorchDispatchMode):
    """Remembers the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def numbers(*size, dtype=torch.float32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_the_kernel_is_there_where_it_can_be_built():
    if os.name != "posix" or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    assert KERNEL.available()


@needs_kernel
def test_it_is_found_by_itself_and_by_name_and_can_be_switched_off(monkeypatch):
    for name, first in (("", ["native"]), ("native", ["native"]), ("torch", [])):
        monkeypatch.setattr(kernels, "_chosen", [])
        monkeypatch.setenv("WAVELET_KERNEL", name)
        assert [kernel.config.kind for kernel in kernels.active_kernels()[:1]] == first


@needs_kernel
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [512, 515, 67])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_multiplies_like_torch(calls, dtype, width, gelu, bias):
    height = SMALLEST_MATRIX[dtype] // width + 1  # odd and even numbers of rows, whole and ragged columns
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
    weight = (numbers(2, 257, 512) / 22).to(dtype)
    x = numbers(rows, 2, 512, dtype=dtype).transpose(0, 1)  # as the mixers hand it over: not contiguous
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            out = stacked_linear(x, weight)
    finally:
        torch.set_num_threads(before)
    expected = torch.bmm(x.double(), weight.double().mT)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert calls == [(2, rows, 512)]


@needs_kernel
def test_gelu_is_exact_far_from_zero():
    """The kernel's error function is an approximation: at the worst 2e-6 off, on values up to 10."""
    bias = torch.linspace(-10, 10, SMALLEST_MATRIX[torch.float32] // 64)
    with torch.no_grad():
        out = linear(torch.zeros(1, 64), torch.zeros(len(bias), 64), bias, gelu=True)[0]
    torch.testing.assert_close(out, F.gelu(bias), atol=2e-6, rtol=0)


@pytest.mark.parametrize("reason", ["gradients", "many rows", "small matrix", "autocast", "strided", "double"])
def test_torch_multiplies_what_the_kernel_cannot(calls, reason):
    dtype = torch.float64 if reason == "double" else torch.float32
    weight = numbers(512, 64 if reason == "small matrix" else 512, dtype=dtype)
    weight = weight.mT if reason == "strided" else weight
    x = numbers(MOST_ROWS + 1 if reason == "many rows" else 2, weight.shape[1], dtype=dtype)
    with torch.set_grad_enabled(reason == "gradients"), torch.autocast("cpu", enabled=reason == "autocast"):
        out = linear(x, weight)
        assert torch.equal(out, F.linear(x, weight))
    assert calls == []


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ((2, 511), (512, 512), 512),
        ((2, 512), (512, 512), 511),
        ((1, 2, 512), (2, 512, 512), None),
        ((2, 2, 512), (2, 512, 512), 2),
    ],
    ids=["other width", "other bias", "other stack", "bias of a stack"],
)
def test_what_does_not_fit_is_refused(calls, x, weight, bias):
    x, weight, bias = torch.zeros(x), torch.zeros(weight), None if bias is None else torch.zeros(bias)
    assert not KERNEL.accepts(x, weight, bias)
    with pytest.raises(ValueError, match="no product of"):
        torch.ops.wavelet_quant.linear(x, weight, bias, False)
    assert calls == []


@needs_kernel
@pytest.mark.parametrize("fastest_until", [0, 16, 64])
def test_what_was_faster_when_measured_multiplies(monkeypatch, tmp_path, fastest_until):
    """Measured once on a machine, on nobody's random numbers."""
    measured = []

    def is_faster(rows, *given):
        measured.append(rows)
        return rows <= fastest_until

    monkeypatch.undo()
    monkeypatch.setenv("WAVELET_CACHE", str(tmp_path))
    monkeypatch.setattr(native_kernel, "_is_faster", is_faster)
    weight = numbers(512, 512)
    for process in range(2):
        native_kernel._most_rows.cache_clear()
        with torch.no_grad():
            assert [rows for rows in range(1, 70) if KERNEL.accepts(numbers(rows, 512), weight)] == [
                *range(1, fastest_until + 1)
            ]
        assert len(measured) == len(set(measured)) > 0, f"process {process} measured again"
    [remembered] = (tmp_path / "kernels").iterdir()
    for damage in ("", "3", "[", "1e3", "true"):
        remembered.write_text(damage)
        native_kernel._most_rows.cache_clear()
        assert native_kernel._most_rows(torch.float32, torch.get_num_threads(), KERNEL.instructions) == fastest_until
    native_kernel._most_rows.cache_clear()


@needs_kernel
@pytest.mark.parametrize("ours", [1.0, 3.0])
def test_measuring_disturbs_nothing(monkeypatch, ours):
    measured = []

    def seconds(work):
        work()
        measured.append(work)
        return ours if len(measured) % 2 else 2.0

    monkeypatch.setattr(native_kernel, "_seconds", seconds)
    state = torch.get_rng_state()
    with Operators() as seen:
        assert native_kernel._is_faster(3, torch.float32, KERNEL.instructions) == (ours < 2)
    assert measured
    assert seen.names == []
    assert torch.equal(torch.get_rng_state(), state)


@needs_kernel
def test_a_model_decodes_alike_with_and_without_the_kernel(model, calls, monkeypatch):
    tokens = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        ours = model(tokens, model.new_state(2))
        assert calls
        monkeypatch.setattr(kernels, "_chosen", [()])
        torch.testing.assert_close(ours, model(tokens, model.new_state(2)), atol=1e-4, rtol=1e-4)


@needs_kernel
def test_the_benchmark_counts_the_kernels_products(model, calls, monkeypatch):
    for operator in (native_kernel._linear, native_kernel._stacked_linear):
        monkeypatch.setitem(native_kernel.UNOBSERVED, operator, native_kernel._multiply)
    with torch.inference_mode():
        products = matrix_products(model)
        recorded = len(calls)
        products()
    assert recorded > 0
    assert len(calls) == 2 * recorded


@needs_kernel
def test_the_profiler_and_dispatch_modes_see_the_products():
    layer, x = Linear(512, 512), numbers(1, 512)
    with torch.no_grad():
        with profile() as profiled:
            layer(x)
        with Operators() as seen:
            stacked_linear(numbers(2, 1, 512), numbers(2, 512, 512))
    assert "wavelet_quant::linear" in [event.key for event in profiled.key_averages()]
    assert "wavelet_quant.stacked_linear.default" in seen.names


@needs_kernel
@pytest.mark.parametrize(
    ("operator", "shapes", "more"),
    [("linear", [(2, 3, 16), (5, 16), (5,)], [True]), ("stacked_linear", [(2, 3, 16), (2, 5, 16)], [])],
)
def test_the_operators_keep_torchs_rules_for_operators(operator, shapes, more):
    arguments = (*(numbers(*shape) for shape in shapes), *more)
    checked = torch.library.opcheck(getattr(torch.ops.wavelet_quant, operator).default, arguments)
    assert set(checked.values()) == {"SUCCESS"}


@needs_kernel
def test_the_operators_compute_in_autocasts_type():
    x, weight, bias = numbers(2, 16), numbers(5, 16), numbers(5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = torch.ops.wavelet_quant.linear(x, weight, bias, True)
        expected = F.gelu(F.linear(x, weight, bias))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.05)


@needs_kernel
def test_compiled_graphs_use_it_for_few_rows_without_compiling_again_for_each_number(calls):
    layer = Linear(256, SMALLEST_COMPILED // 256).to(torch.bfloat16)
    graphs = []

    def backend(graph, inputs):
        graphs.append(any("wavelet_quant" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch.no_grad():
        for rows in (1, 2, 3, 5, 40, MOST_ROWS + 1, MOST_ROWS + 9, 7):
            x = numbers(rows, 256, dtype=torch.bfloat16)
            before = len(calls)
            torch.testing.assert_close(compiled(x), layer(x), atol=2e-2, rtol=2e-2)
            assert len(calls) - before == (2 if rows <= MOST_ROWS else 0)
    assert graphs == [True, True, False]
    compiled(numbers(1, 256, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


@needs_kernel
@pytest.mark.parametrize("instructions", instruction_sets())
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [16, 64, 512])
def test_walsh_hadamard_transforms_are_products_with_the_matrix(monkeypatch, instructions, dtype, width):
    kernel = Native(Native.Config(instruction_set=instructions))
    monkeypatch.setattr(kernels, "_chosen", [(kernel,)])
    asked = []
    monkeypatch.setattr(kernel, "walsh_hadamard", lambda x: asked.append(x.shape) or Native.walsh_hadamard(kernel, x))
    transform = WalshHadamard(WalshHadamard.Config(), ModelShape(width=width, levels=2))
    x = numbers(3, 2, 100, width, dtype=dtype).permute(1, 2, 0, 3).requires_grad_()
    y = transform(x)
    y.backward(x.detach())
    expected = x.double() @ hadamard(width).double() * width**-0.5
    for result in (y, x.grad):
        torch.testing.assert_close(result.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert y.stride() == x.stride() and asked == [(3, 2, 100, width)] * 2


@needs_kernel
def test_walsh_hadamard_transforms_compile():
    transform = WalshHadamard(WalshHadamard.Config(), ModelShape(width=64, levels=2))
    x = numbers(2, SMALLEST_COMPILED // 128, 64).requires_grad_()
    run = torch.compile(transform, fullgraph=True, backend="aot_eager")
    y = run(x)
    y.backward(x.detach())
    torch.testing.assert_close(y, transform(x))
    torch.testing.assert_close(x.grad, y)
    with profile() as seen:
        run(x)
    assert "wavelet_quant::walsh_hadamard" in {event.name for event in seen.events()}


def delta_rule_with_gradients(tensors, chunk):
    outputs, memory = gated_delta_rule(*tensors, chunk)
    worth = (outputs * outputs.detach().cos()).sum() + memory.square().sum()
    return (outputs, memory, *torch.autograd.grad(worth, tensors))


@needs_kernel
@pytest.mark.parametrize("instructions", instruction_sets())
@pytest.mark.parametrize(("length", "chunk", "keys", "values"), [(2, 16, 16, 32), (33, 16, 48, 16), (70, 32, 32, 32)])
def test_the_gated_delta_rule_and_its_gradients_are_those_of_torch(
    monkeypatch, instructions, length, chunk, keys, values
):
    kernel = Native(Native.Config(instruction_set=instructions))
    asked = []
    monkeypatch.setattr(kernel, "gated_delta_rule", lambda *x: asked.append(1) or Native.gated_delta_rule(kernel, *x))
    q, k, v = numbers(2, 3, length, keys), numbers(2, 3, length, keys), numbers(2, 3, length, values)
    log_decay, strength = -numbers(2, 3, length).exp(), numbers(2, 3, length).sigmoid()
    log_decay[0, 1, length // 2] = -50
    tensors = [q.transpose(0, 1), F.normalize(k, dim=-1).transpose(0, 1), v.transpose(0, 1)]
    tensors += [log_decay.transpose(0, 1), strength.transpose(0, 1), numbers(3, 2, keys, values)]
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    results = []
    for chosen in ([(kernel,)], [()]):
        monkeypatch.setattr(kernels, "_chosen", chosen)
        results.append(delta_rule_with_gradients(tensors, chunk))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert asked == [1]
