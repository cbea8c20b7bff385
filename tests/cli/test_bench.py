"""`wavelet bench`: what it reports, its picture, and what it refuses."""

from __future__ import annotations

import itertools
import json
import mmap
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from wavelet_core import WaveletLM, build_model, kernels
from wavelet_quant import kernel_benchmark
from wavelet_quant.native_library import instruction_sets
from wavelet_train.measurement import Measurement
from wavelet_train.run_config import load_run_config

SMALL = ["--preset", "demo", "--random", "--set", "model.width=16", "--set", "model.vocabulary_size=300"]
QUICK = ["--positions", "8,64", "--rounds", 2, "--window-rounds", 1, "--no-replay"]


@pytest.fixture
def report(wavelet):
    """Run the benchmark and return its report."""

    def run(*arguments) -> dict:
        result = wavelet("bench", "decode", *arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


def model_of(*overrides: str):
    return build_model(load_run_config("demo", overrides).model)


@pytest.fixture
def clock(monkeypatch) -> dict[str, float]:
    """A clock by which the model takes a second for every position it reads, and anything else "tick" seconds."""
    clock = {"now": 0.0, "tick": 2.0**-20}

    def now() -> float:
        clock["now"] += clock["tick"]
        return clock["now"]

    hidden = WaveletLM.hidden

    def read(self, tokens, *arguments, **options):
        clock["now"] += tokens.shape[1]
        return hidden(self, tokens, *arguments, **options)

    monkeypatch.setattr(time, "perf_counter", now)
    monkeypatch.setattr(WaveletLM, "hidden", read)
    return clock


def test_every_figure_follows_from_the_times_and_sizes(report, clock):
    found = report(*SMALL, *QUICK, "--batches", "2,3")
    near = partial(pytest.approx, rel=1e-4)
    assert found["latency"] == [{"position": 8, "seconds": near(1)}, {"position": 64, "seconds": near(1)}]
    assert (found["seconds_per_token"], found["tokens_per_second"]) == (near(1), near(1))
    assert found["last_to_first_latency"] == near(1)
    assert found["batches"] == [
        {"streams": streams, "tokens_per_second": near(streams), "throughput_over_one": near(streams)}
        for streams in (2, 3)
    ]
    # One token by each of the two ways to do it as the original does reads the whole context of 128.
    assert (found["window_tokens"], found["window_seconds_per_token"]) == (128, near(128))
    assert (found["window_to_stream"], found["full_forward_to_stream"]) == (near(128), near(128))
    # Bandwidth and matrix products are timed alone, which takes a tick here.
    assert found["time_over_matrix_products"] == near(1 / clock["tick"])
    assert found["share_of_bandwidth"] == near(found["weight_bytes_per_token"] / found["read_bandwidth"])
    assert found["decoded_tokens"] == 2 * (2 + 1)
    assert found["resident_growth_between_positions_bytes"] is None


def test_sizes_are_those_of_the_model(report):
    model = model_of("model.width=16", "model.vocabulary_size=300")
    found = report(*SMALL, *QUICK)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["state_bytes"] == model.new_state(1).nbytes
    larger = report(*SMALL, *QUICK, "--set", "model.vocabulary_size=600")
    # A token reads all of the head, and a row of the embedding.
    assert larger["weight_bytes_per_token"] - found["weight_bytes_per_token"] == 300 * 16 * 4
    assert larger["parameters"] - found["parameters"] == 2 * 300 * 16
    halved = report(*SMALL, *QUICK, "--dtype", "bfloat16")
    indices = sum(buffer.nbytes for buffer in model.buffers() if not buffer.is_floating_point())
    assert 2 * (halved["weight_bytes_per_token"] - indices) == found["weight_bytes_per_token"] - indices
    assert halved["dtype"] == "bfloat16"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")
def test_memory_that_grows_between_positions_is_seen(wavelet, report, monkeypatch):
    arguments = (*SMALL, *QUICK, "--window-rounds", 0, "--token-by-token")
    assert "from the first position to the last" in wavelet("bench", "decode", *arguments).stdout
    kept, hidden = [], WaveletLM.hidden
    growths = []
    for size in (0, 1 << 20):

        def leak(self, *given, size=size):
            if size:  # fresh pages, not memory that the process has had before
                kept.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
                kept[-1].write(bytes([1]) * size)
            return hidden(self, *given)

        monkeypatch.setattr(WaveletLM, "hidden", leak)
        growths.append(report(*arguments))
    between = "resident_growth_between_positions_bytes"
    assert growths[0][between] < 56 << 19 < 56 << 20 <= growths[1][between]  # 56 tokens from position 8 to 64
    decoded = growths[1]["decoded_tokens"]
    assert growths[0]["resident_growth_bytes"] < decoded << 19 < decoded << 20 <= growths[1]["resident_growth_bytes"]


@pytest.mark.parametrize(
    ("option", "names"), [("torch", []), ("reference", ["reference"]), ("{kind: reference}", ["reference"])]
)
def test_one_kernel_is_used_by_its_name_or_its_configuration(report, monkeypatch, option, names):
    monkeypatch.setattr(kernels, "_chosen", [])
    assert report(*SMALL, *QUICK, "--window-rounds", 0, "--kernel", option)["kernels"] == names


def test_a_table_is_for_people(wavelet):
    result = wavelet("bench", "decode", *SMALL, *QUICK, "--window-rounds", 0, "--dtype", "bfloat16")
    assert "tokens/s" in result.stdout and "bfloat16" in result.stdout and "at position 64" in result.stdout
    assert "window" not in result.stdout


def test_latency_is_drawn(wavelet, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="pictures need the extra wavelet-train[plot]")
    picture = tmp_path / "decode.svg"
    result = wavelet("bench", "decode", *SMALL, *QUICK, "--plot", picture)
    assert result.exit_code == 0 and picture.read_text().lstrip().startswith("<?xml")


def test_a_picture_without_matplotlib_is_refused_before_measuring(wavelet, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = wavelet("bench", "decode", *SMALL, "--plot", tmp_path / "decode.png")
    assert result.exit_code == 2 and "pip install 'wavelet-train[plot]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a CHECKPOINT or a --preset"),
        (["runs/x", "--preset", "demo"], "either a CHECKPOINT or a --preset"),
        (["--preset", "demo"], "add --random"),
        (["runs/x", "--random"], "for --preset"),
        ([*SMALL, "--positions", "1,x"], "whole numbers"),
        ([*SMALL, "--positions", "0"], "whole numbers"),
        ([*SMALL, "--batches", ""], "whole numbers"),
        ([*SMALL, "--plot", "decode.gif"], ".svg or .png"),
        (["--preset", "dem", "--random"], "did you mean 'demo'"),
        ([*SMALL, "--formats", "int8", "--positions", "3"], "--positions is not measured with --formats"),
        ([*SMALL, "--formats", "int8,"], "must be names separated by commas"),
        ([*SMALL, "--formats", "int8,int8"], "names one twice"),
        ([*SMALL, "--formats", "int9"], "did you mean"),
        ([*SMALL, "--prompt-tokens", "3"], "--prompt-tokens needs --formats"),
    ],
)
def test_nonsense_is_refused_with_status_2(wavelet, arguments, message):
    result = wavelet("bench", "decode", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize("value", ["0", "1,", "1,-2", "1.5", "x", "9" * 10, "1" + "0" * 5000])
def test_numbers_out_of_range_are_refused(wavelet, value):
    result = wavelet("bench", "decode", "--preset", "demo", "--random", "--batches", value)
    assert result.exit_code == 2
    assert "whole numbers from 1 to 999,999,999" in " ".join(result.stderr.split())
    assert len(result.stderr) < 1000


FORMATS = ["bfloat16", "int8", "dequantize", "int4"]


def test_formats_are_compared_side_by_side(report, clock):
    found = report(
        *(*SMALL, "--set", "model.width=128", "--formats", ",".join(FORMATS)),
        *("--rounds", 4, "--batches", 3, "--prompt-tokens", 20, "--no-replay"),
    )
    formats = {entry["format"]: entry for entry in found["formats"]}
    assert list(formats) == FORMATS
    near = partial(pytest.approx, rel=1e-4)
    for entry in formats.values():
        for one in ("seconds_per_token", "speed_over_first", "prompt_speed_over_first", "prompt_tokens_per_second"):
            assert entry[one] == near(1)
        assert entry["batches"] == [{"streams": 3, "tokens_per_second": near(3), "throughput_over_one": near(3)}]
        assert entry["share_of_bandwidth"] == near(entry["weight_bytes_per_token"] / found["read_bandwidth"])
    sizes = [formats[name]["weight_bytes"] for name in ("int4", "int8", "bfloat16")]
    assert sizes == sorted(sizes) and sizes[0] < 0.4 * sizes[2]
    assert formats["dequantize"]["weight_bytes"] == pytest.approx(sizes[1], rel=0.1)


def test_a_comparison_is_a_table_for_people(wavelet):
    result = wavelet("bench", "decode", *SMALL, "--formats", "float32,int8", "--rounds", 1, "--prompt-tokens", 8)
    assert result.exit_code == 0, result.output
    assert "times first" in result.stdout and "int8" in result.stdout and "prompt of 8" in result.stdout


needs_library = pytest.mark.skipif(not instruction_sets(), reason="the native library is not installed here")
FEW = ["--shapes", "40x64,64x128", "--rows", "1,3", "--rounds", 1, "--threads", 1]


@needs_library
def test_kernels_are_measured_for_every_format_shape_and_number_of_rows(wavelet, monkeypatch):
    monkeypatch.setattr(kernel_benchmark, "FILLED", 1 << 14)
    result = wavelet("bench", "kernels", *FEW, "--formats", "float16,int4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = itertools.product(("float16", "int4"), ((40, 64), (64, 128)), (1, 3), ("torch", *instruction_sets()))
    products = found["products"]
    assert [(p["format"], (p["height"], p["width"]), p["rows"], p["by"]) for p in products] == list(expected)
    for product in products:
        assert product["bandwidth"] == pytest.approx(product["share"] * found["read_bandwidth"], rel=0.9)
        assert product["by"] != "torch" or product["over_torch"] == 1
    dense = next(product for product in products if product["format"] == "float16")
    assert dense["bandwidth"] * dense["seconds"] == pytest.approx(40 * 64 * 2)


@needs_library
def test_figures_are_kept_with_where_they_come_from(wavelet, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_benchmark, "FILLED", 1 << 14)
    path = tmp_path / "results" / "kernels.json"
    arguments = ("bench", "kernels", *FEW, "--formats", "int8", "--instruction-sets", "portable")
    result = wavelet(*arguments, "--output", path)
    assert result.exit_code == 0, result.stderr
    kept = Measurement.read(path)
    assert kept.command == " ".join(["wavelet", *map(str, arguments)]) and kept.source == "measured"
    assert kept.figures["products"] and kept.text.strip() == result.stdout.strip()
    assert "packages/wavelet-quant/src/wavelet_quant/native_kernel.py" in kept.code


@needs_library
def test_measured_kernels_are_tables_for_people(wavelet, monkeypatch):
    monkeypatch.setattr(kernel_benchmark, "FILLED", 1 << 14)
    result = wavelet("bench", "kernels", *FEW, "--formats", "int8", "--instruction-sets", "portable")
    assert result.exit_code == 0, result.output
    assert "int8, 64 x 128" in result.stdout and "times torch" in result.stdout and "avx2" not in result.stdout


@needs_library
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "3"], "must be heights and widths"),
        (["--shapes", "0x3"], "must be heights and widths"),
        (["--rows", "0"], "whole numbers"),
        (["--shapes", "64x96"], "64x96 does not fit the groups of int4"),
        (["--formats", "int9"], "unknown format 'int9'"),
        (["--instruction-sets", "sse9"], "instruction_set=sse9"),
    ],
)
def test_kernels_that_cannot_be_measured_are_refused(wavelet, arguments, message):
    result = wavelet("bench", "kernels", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_steps_are_replayed_unless_asked_otherwise(report, wavelet):
    arguments = (*SMALL, "--positions", 8, "--rounds", 1, "--window-rounds", 0)
    assert report(*arguments)["replayed"] and not report(*arguments, "--no-replay")["replayed"]
    assert "replayed" in wavelet("bench", "decode", *arguments).stdout
    assert report(*SMALL, "--formats", "float32,int8", "--rounds", 1, "--prompt-tokens", 5)["replayed"]
