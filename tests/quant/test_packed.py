"""Packed matrices: their layout, and products by the library and by torch that agree for every shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wavelet_core import kernels
from wavelet_core.kernels import as_single_rows
from wavelet_quant import native_library
from wavelet_quant import packed as packed_module
from wavelet_quant.native_kernel import Native
from wavelet_quant.native_library import instruction_sets
from wavelet_quant.packed import OFFSETS, PackedMatrix, dense, multiply_in_torch, pack, unpack
from wavelet_quant.reference_kernel import Reference

EXACT_ROWS = 8  # more become integers of 8 bits with AVX-512
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # of what comes out, relative
needs_library = pytest.mark.skipif(native_library.library() is None, reason="the native library is not installed here")

formats = st.sampled_from([(8, None), (4, 32), (4, 64), (4, 128), (4, None), (2, 32), (2, 64), (2, 128)])


@pytest.fixture
def use(monkeypatch):
    """Choose the kernel: an instruction set, or "torch"."""

    def use(name):
        chosen = () if name == "torch" else (Native(Native.Config(instruction_set=name)),)
        monkeypatch.setattr(kernels, "_chosen", [chosen])

    monkeypatch.delenv("WAVELET_INSTRUCTION_SET", raising=False)
    return use


def numbers(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(list(OFFSETS)), st.integers(1, 40), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_unpacking_gives_what_was_packed(bits, height, width, stacked, seed):
    shape = (3, height, width) if stacked else (height, width)
    codes = torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape[-4:] == (-(-height // 16), -(-width * bits // 32), 16, 4)
    assert torch.equal(unpack(packed, bits, height, width), codes)


def test_the_layout_is_the_one_that_is_documented():
    codes = torch.arange(16 * 16).view(16, 16) % 16
    word = pack(codes, 4)[0, 1, 3]  # row 3, channels 8 to 15
    row = codes[3, 8:]
    assert word.tolist() == [int(row[i] + 16 * row[4 + i]) for i in range(4)]


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (2, 32)])
def test_no_entry_is_off_by_more_than_half_a_step(bits, group):
    weight = numbers(20, 64)
    packed = PackedMatrix.quantized(weight, bits, group)
    error = (packed.matrix() - weight).abs().unflatten(-1, (-1, group or 64)).amax(-1)
    scales = packed.scales.float().transpose(-1, -2).flatten(0, 1)[:20]
    assert (error <= 0.501 * scales).all()
    assert packed.values.nbytes == 32 * 64 * bits // 8


def as_integers(x, name, group):
    """The integers that x becomes, before they are rounded, and their scales, one for each channel."""
    exact = name != "avx512" or x.shape[-2] <= EXACT_ROWS
    width, largest = x.shape[-1], 32512 if exact else 127
    run = width if exact else group or 64
    runs = F.pad(x.float(), (0, -width % run)).unflatten(-1, (-1, run))
    greatest = runs.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    integers = runs.double() * (largest / greatest).double()
    return (flat.flatten(-2)[..., :width] for flat in (integers, (greatest / largest).double().expand_as(integers)))


@needs_library
@pytest.mark.parametrize("name", instruction_sets())
@settings(max_examples=60, deadline=None)
@given(
    formats,
    st.sampled_from(list(ROUNDING)),
    st.sampled_from(list(ROUNDING)),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from(["", "bias", "gelu", "stack"]),
    st.integers(0, 99),
)
def test_the_library_multiplies_like_torch(name, format, dtype, scale_type, rows, width, height, form, seed):
    bits, group = format
    width = width * group if group else 1 + seed * 11
    weight = numbers(*([2] if form == "stack" else []), height, width, seed=seed) * width**-0.5
    packed = PackedMatrix.quantized(weight, bits, group, scale_type)
    x = numbers(*([2] if form == "stack" else []), rows, width, seed=seed + 1).to(dtype)
    bias = numbers(height, seed=seed + 2).to(dtype) if form in ("bias", "gelu") else None
    matrix = packed.matrix().double()
    integers, scales = as_integers(x, name, group if packed.scales.shape[-2] > 1 else None)
    expected = (integers.round() * scales) @ matrix.mT + (0 if bias is None else bias.double())
    expected = F.gelu(expected) if form == "gelu" else expected
    before = torch.get_num_threads()
    results = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.delenv("WAVELET_INSTRUCTION_SET", raising=False)
        patch.setattr(kernels, "_chosen", [(Native(Native.Config(instruction_set=name)),)])
        try:
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                results.append(packed(x, bias, form == "gelu"))
        finally:
            torch.set_num_threads(before)
        fewer = 1 if name != "avx512" or rows <= EXACT_ROWS else EXACT_ROWS + 1
        last = packed(x[..., -fewer:, :], bias, form == "gelu")
    assert results[0].dtype is dtype
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(last, results[0][..., -fewer:, :])
    # Halfway between two integers either may be taken, and sums are rounded; GELU is nowhere steeper than 1.13.
    halfway = (integers - integers.floor() - 0.5).abs() < 0.01
    off = (halfway * scales + 2e-6 * x.double().abs().amax(-1, keepdim=True)) @ matrix.abs().mT
    most = 1.13 * off + ROUNDING[dtype] * (expected.abs() + 1)
    assert ((results[0].double() - expected).abs() <= most).all()


@needs_library
@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 64), (2, 128)])
def test_a_long_prompt_has_the_bits_of_its_parts(use, name, bits, group):
    """Rows are prepared up to 128 at a time, and multiplied with pieces of the matrix of 2048 channels."""
    use(name)
    packed = PackedMatrix.quantized(numbers(33, 4224), bits, group)
    x = numbers(130, 4224, seed=1)
    expected = packed(x)
    for size in (10, 13, 65) if name == "avx512" else (1, 10):
        assert torch.equal(expected, torch.cat([packed(rows) for rows in x.split(size)]))
    with as_single_rows():
        assert torch.equal(packed(x), torch.cat([packed(row) for row in x.split(1)]))


@needs_library
@pytest.mark.skipif("avx512" not in instruction_sets(), reason="this processor lacks AVX-512 with VNNI")
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (4, 64), (2, 128)])
@pytest.mark.parametrize("factor", [1e-20, 1, 1e20])
def test_many_rows_become_integers_of_8_bits_and_few_do_not(use, bits, group, factor):
    use("avx512")
    packed = PackedMatrix.quantized(numbers(64, 1024), bits, group)
    x = factor * numbers(EXACT_ROWS + 1, 1024, seed=1)
    expected = x[:EXACT_ROWS].double() @ packed.matrix().double().mT
    few, many = ((packed(rows)[:EXACT_ROWS] - expected).norm() / expected.norm() for rows in (x[:EXACT_ROWS], x))
    assert few < 5e-5
    assert 2e-3 < many < 8e-3


@needs_library
@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("bits", OFFSETS)
@pytest.mark.parametrize("times", [1, 4])
def test_the_largest_sums_are_exact(use, name, bits, times):
    """Every code and every entry of x at its limits, over more channels than a run of integers has."""
    use(name)
    most = (1 << bits) - 1
    codes = torch.tensor([[0], [most]]).expand(2, 600)
    packed = PackedMatrix(codes, torch.ones(2, 1), bits)
    rows = [torch.ones(1, 600), -torch.ones(1, 600), torch.ones(1, 600).cumsum(1).remainder(2) * 2 - 1]
    x = torch.cat(times * rows)
    with torch.no_grad():
        out = packed(x)
    expected = x @ (codes - OFFSETS[bits]).float().mT
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0.02)


@needs_library
@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("times", [1, 3])
def test_x_of_zeros_of_tiny_and_of_infinite_numbers(use, name, times):
    use(name)
    packed = PackedMatrix.quantized(torch.ones(3, 64), 4, 64)
    x = torch.zeros(4, 64)
    x[1, 5], x[2, 0], x[3, 1] = torch.inf, torch.nan, 1e-42
    with torch.no_grad():
        out = packed(x.repeat(times, 1))[-4:]
    assert out[0].eq(0).all()
    assert out[1].isnan().all()
    assert out[2].isnan().all()
    assert out[3].abs().max() < 1e-40


def test_torch_multiplies_where_no_kernel_does(use):
    use("torch")
    packed = PackedMatrix.quantized(numbers(5, 64), 4, 32)
    x = numbers(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), x @ packed.matrix().mT)
        torch.testing.assert_close(packed(x.double()), x.double() @ packed.matrix().double().mT)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("form", ["", "bias", "gelu"])
def test_torch_unpacks_some_rows_at_a_time(monkeypatch, stacked, form):
    weight = numbers(*([3] if stacked else []), 70, 64)
    x = numbers(*([3] if stacked else []), 5, 64, seed=1)
    bias = None if stacked or not form else numbers(70, seed=2)
    packed = PackedMatrix.quantized(weight, 4, 32)
    whole = multiply_in_torch(x, packed.values, packed.scales, bias, 4, 70, form == "gelu")
    unpacked = []
    dense = packed_module.dense
    monkeypatch.setattr(packed_module, "dense", lambda *given: unpacked.append(dense(*given)) or unpacked[-1])
    monkeypatch.setattr(packed_module, "UNPACKED", 2 * 16 * 64)
    parts = multiply_in_torch(x, packed.values, packed.scales, bias, 4, 70, form == "gelu")
    assert max(part.numel() for part in unpacked) <= max(2 * 16 * 64, weight.numel() // 70 * 16)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.cat(unpacked, -2), packed.matrix())


def test_gradients_of_x_are_those_of_the_dense_matrix():
    packed = PackedMatrix.quantized(numbers(5, 64), 4, 32)
    x = numbers(2, 64).requires_grad_()
    bias = numbers(5, seed=1).requires_grad_()
    given = torch.autograd.grad(packed(x, bias, gelu=True).square().sum(), (x, bias))
    expected = torch.autograd.grad(F.gelu(F.linear(x, packed.matrix(), bias)).square().sum(), (x, bias))
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("kernel", [(), (Reference(Reference.Config()),)], ids=["none", "reference"])
def test_autocast_decides_the_type(monkeypatch, kernel):
    monkeypatch.setattr(kernels, "_chosen", [kernel])
    packed = PackedMatrix.quantized(numbers(5, 64), 4, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = packed(numbers(2, 64), numbers(5, seed=1))
    assert out.dtype is torch.bfloat16


def test_the_product_is_compiled_into_one_graph_and_made_on_the_meta_device():
    packed = PackedMatrix.quantized(numbers(5, 64), 4, 32)
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        for rows in (1, 2, 3, 7):
            x = numbers(rows, 64)
            compiled = torch.compile(packed, fullgraph=True, backend=backend)
            torch.testing.assert_close(compiled(x, gelu=True), packed(x, gelu=True))
    assert graphs == [["wavelet_quant.packed_linear.default"]] * 2  # for one row, and for any number
    assert packed.to("meta")(x.to("meta")).shape == (7, 5)


@pytest.mark.parametrize("stacked", [False, True])
def test_the_operator_keeps_torchs_rules_for_operators(stacked):
    packed = PackedMatrix.quantized(numbers(*([2] if stacked else []), 5, 64), 4, 32)
    x, bias = numbers(2, 3, 64), None if stacked else numbers(5)
    arguments = (x, packed.values, packed.scales, bias, 4, 5, True)
    checked = torch.library.opcheck(
        torch.ops.wavelet_quant.packed_linear.default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    assert set(checked.values()) == {"SUCCESS"}


def test_a_packed_matrix_is_saved_loaded_and_moved_as_it_is():
    packed, other = (PackedMatrix.quantized(numbers(17, 64, seed=seed), 4, 32) for seed in (0, 1))
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other.matrix(), packed.matrix())
    assert other.to(torch.bfloat16).scales.dtype is torch.float16
    assert torch.equal(dense(other.values, other.scales, 4, 17, 64), packed.matrix())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 3}, "3 bits"),
        ({"group": 48}, "group 48 for 96 channels"),
        ({"group": 64}, "group 64 for 96 channels"),
        ({"weight": torch.full((2, 96), torch.nan)}, "not finite"),
        ({"weight": torch.full((2, 96), 1e9)}, "too large for scales"),
    ],
)
def test_what_cannot_be_packed_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        PackedMatrix.quantized(**{"weight": numbers(2, 96), "bits": 4, "group": 32, **change})


def test_scales_and_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit codes"):
        PackedMatrix(torch.zeros(3, 64), torch.ones(3, 5), 4)
    packed = PackedMatrix.quantized(numbers(20, 64), 4, 32)
    for values, scales, x in (
        (packed.values[:1], packed.scales, numbers(1, 64)),
        (packed.values, packed.scales[:1], numbers(1, 64)),
        (packed.values, packed.scales, numbers(1, 65)),
    ):
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="no product of"):
                torch.ops.wavelet_quant.packed_linear(x, values, scales, None, 4, 20, False)
