"""`wavelet bench decode`: what it reports, its picture, and what it refuses."""

from __future__ import annotations

import json
import mmap
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from wavelet_core import WaveletLM, build_model, kernels
from wavelet_train.run_config import load_run_config

SMALL = ["--preset", "demo", "--random", "--set", "model.width=16", "--set", "model.vocabulary_size=300"]
QUICK = ["--positions", "8,64", "--rounds", 2, "--window-rounds", 1]


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
    assert 2 * halved["weight_bytes_per_token"] == found["weight_bytes_per_token"]
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
    pytest.importorskip("matplotlib", reason="pictures need the extra wavelet-cli[matplotlib]")
    picture = tmp_path / "decode.svg"
    result = wavelet("bench", "decode", *SMALL, *QUICK, "--plot", picture)
    assert result.exit_code == 0 and picture.read_text().lstrip().startswith("<?xml")


def test_a_picture_without_matplotlib_is_refused_before_measuring(wavelet, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = wavelet("bench", "decode", *SMALL, "--plot", tmp_path / "decode.png")
    assert result.exit_code == 2 and "pip install 'wavelet-cli[matplotlib]'" in result.stderr


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
