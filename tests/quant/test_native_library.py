"""The native library: every instruction set, any shape, no byte outside the tensors, any number of threads."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavelet_core import ConfigurationError
from wavelet_quant import native_library
from wavelet_quant.decode_benchmark import ReadBandwidth
from wavelet_quant.native_kernel import Native, _multiply
from wavelet_quant.native_library import INSTRUCTION_SETS, instruction_set, instruction_sets

PACKAGE = Path(__file__).parents[2] / "packages" / "wavelet-quant"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
FEW = 11  # rows that every instruction set multiplies as it multiplies one
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

COMPILER = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
needs_library = pytest.mark.skipif(native_library.library() is None, reason="the native library is not installed here")


@pytest.fixture
def build(monkeypatch):
    pytest.importorskip("hatchling")
    monkeypatch.syspath_prepend(str(PACKAGE))
    import hatch_build

    return hatch_build.build


@needs_library
def test_an_instruction_set_is_named_by_the_configuration_then_by_the_environment(monkeypatch):
    monkeypatch.delenv("WAVELET_INSTRUCTION_SET", raising=False)
    assert INSTRUCTION_SETS[instruction_set()] == instruction_sets()[-1]
    assert Native(Native.Config(instruction_set="portable")).instructions == 0
    monkeypatch.setenv("WAVELET_INSTRUCTION_SET", "portable")
    assert instruction_set() == Native(Native.Config()).instructions == 0
    assert INSTRUCTION_SETS[instruction_set(instruction_sets()[-1])] == instruction_sets()[-1]


@needs_library
@pytest.mark.parametrize("missing", ["avx512", "sse9"])
def test_an_instruction_set_that_is_not_there_is_refused_by_name(monkeypatch, missing):
    monkeypatch.setattr(native_library, "instruction_sets", lambda: ("portable",))
    with pytest.raises(ConfigurationError, match=f"instruction_set={missing}: .* have portable"):
        instruction_set(missing)
    monkeypatch.setenv("WAVELET_INSTRUCTION_SET", missing)
    with pytest.raises(ConfigurationError, match=f"WAVELET_INSTRUCTION_SET={missing}: .* have portable"):
        Native(Native.Config())


@needs_library
def test_the_best_instruction_set_of_the_processor_was_built():
    if platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert "avx2" in instruction_sets()


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(instruction_sets() or ("portable",)),
    rows=st.integers(1, 30),
    width=st.integers(1, 300),
    height=st.integers(1, 90),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_threads_and_a_few_more_rows_change_no_bit_of_a_product(dtype, name, rows, width, height, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator).to(dtype)
    weight = (torch.randn(height, width, generator=generator) * width**-0.5).to(dtype)
    b = torch.randn(height, generator=generator).to(dtype) if bias else None
    instructions = INSTRUCTION_SETS.index(name)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(_multiply(x, weight, b, False, instructions))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    few = [_multiply(rows, weight, b, False, instructions) for rows in x.split(FEW)]
    alone = [_multiply(row, weight, b, False, instructions) for row in x.split(1)]
    assert torch.equal(torch.cat(alone), torch.cat(few))
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
    torch.testing.assert_close(results[0].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@needs_library
@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_not_finite_and_what_is_tiny_stays_so(name, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    special = [torch.inf, -torch.inf, torch.nan, tiny, -2 * tiny, torch.finfo(dtype).max, 1.0]
    weight = torch.tensor(special, dtype=dtype)[:, None]
    out = _multiply(torch.ones(1, 1, dtype=dtype), weight, None, False, INSTRUCTION_SETS.index(name))
    torch.testing.assert_close(out[0], weight[:, 0], equal_nan=True, atol=0, rtol=0)


@needs_library
def test_every_half_of_the_portable_conversion_is_torchs():
    """The exact products with 1 of all numbers in 16 bits, subnormal ones included."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    weight = bits.view(torch.float16)[:, None]
    out = _multiply(torch.ones(1, 1, dtype=torch.float16), weight, None, False, 0)
    torch.testing.assert_close(out[0], weight[:, 0], equal_nan=True, atol=0, rtol=0)


@needs_library
def test_the_read_bandwidth_is_measured_by_the_library(monkeypatch):
    read = []
    monkeypatch.setattr(native_library, "read", lambda memory: read.append(memory.nbytes))
    assert ReadBandwidth(torch.device("cpu")).measure() > 0
    assert read == [1 << 28]


def check_random_shapes(library, folder, count, flags=(), compiler=COMPILER, runner=()):
    """Products of so many random shapes, by a program that leaves no byte around its buffers."""
    program, source = folder / "program", Path(__file__).with_name("native_shapes.cpp")
    command = [compiler, "-std=c++17", "-O1", *flags, str(source), str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*command, "-o", str(program)], check=True)
    # Threads keep their memory from call to call, which looks like a leak where one still runs when the program ends.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([*runner, program, str(count), "1"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"0 of {count} shapes are wrong\n"


needs_compiler = pytest.mark.skipif(COMPILER is None or os.name != "posix", reason="there is no C++ compiler")


@needs_library
@needs_compiler
def test_products_of_random_shapes_are_right(tmp_path):
    check_random_shapes(native_library.LIBRARY, tmp_path, 30)


@pytest.mark.slow
@needs_compiler
def test_sanitizers_find_nothing_in_products_of_random_shapes(build, tmp_path):
    library = tmp_path / "library.so"
    problem = build(PACKAGE / "src/wavelet_quant/native", library, extra=SANITIZERS)
    if "sanit" in problem or "asan" in problem:
        pytest.skip("the compiler has no sanitizers")
    assert problem == ""
    check_random_shapes(library, tmp_path, 10_000, SANITIZERS)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="there is no compiler for aarch64")
def test_it_is_built_for_aarch64_and_right_there(build, monkeypatch, tmp_path):
    compiler, library = "aarch64-linux-gnu-g++", tmp_path / "library.so"
    monkeypatch.setenv("CXX", compiler)
    assert build(PACKAGE / "src/wavelet_quant/native", library, machine="aarch64") == ""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("built; there is no qemu-aarch64 to run it")
    runner = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
    check_random_shapes(library, tmp_path, 300, compiler=compiler, runner=runner)


def test_without_a_compiler_there_is_no_library_but_a_reason(build, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent / "nowhere"))
    assert build(PACKAGE / "src/wavelet_quant/native", tmp_path / "library.so") == "there is no C++ compiler"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in build(PACKAGE / "src/wavelet_quant/native", tmp_path / "library.so")
    assert not list(tmp_path.iterdir())
